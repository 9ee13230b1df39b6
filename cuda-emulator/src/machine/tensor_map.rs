//! Tensor maps: what `cuTensorMapEncodeTiled` makes and the copies of tiles read.
//!
//! The real 128 bytes are opaque. These hold, in little endian: a mark of 4 bytes, a byte each for
//! type, rank, swizzle and fill, the address, five sizes less one (4 bytes each), four strides
//! (8 bytes each), five box sizes (2 bytes each), five element strides, interleave and promotion.

/// The first bytes of a map, by which garbage is told.
const MARK: [u8; 4] = *b"TMAP";
/// Size of a map in bytes.
const BYTES: usize = 128;
/// The most dimensions.
pub(crate) const RANK: usize = 5;

/// The type of a tensor's elements, numbered as `CUtensorMapDataType`.
#[allow(missing_docs)] // The names say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum TensorType {
    Uint8,
    Uint16,
    Uint32,
    Int32,
    Uint64,
    Int64,
    Float16,
    Float32,
    Float64,
    Bfloat16,
    Float32Ftz,
    Tfloat32,
    Tfloat32Ftz,
}

impl TensorType {
    const ALL: [Self; 13] = [
        Self::Uint8,
        Self::Uint16,
        Self::Uint32,
        Self::Int32,
        Self::Uint64,
        Self::Int64,
        Self::Float16,
        Self::Float32,
        Self::Float64,
        Self::Bfloat16,
        Self::Float32Ftz,
        Self::Tfloat32,
        Self::Tfloat32Ftz,
    ];

    /// The type with the number of `CUtensorMapDataType`; none for packed types of 4 and 6 bits.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(number as usize).copied()
    }

    /// Bytes of an element.
    pub fn bytes(self) -> u64 {
        match self {
            Self::Uint8 => 1,
            Self::Uint16 | Self::Float16 | Self::Bfloat16 => 2,
            Self::Uint64 | Self::Int64 | Self::Float64 => 8,
            _ => 4,
        }
    }

    /// Whether a NaN can fill what lies outside.
    pub fn is_float(self) -> bool {
        self as u8 >= Self::Float16 as u8
    }
}

/// How the 16-byte pieces of a row in shared memory change places, numbered as
/// `CUtensorMapSwizzle`: the bits of the row's number are XORed into those of the piece's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Swizzle {
    /// Not at all.
    #[default]
    None,
    /// Within 32 bytes.
    B32,
    /// Within 64 bytes.
    B64,
    /// Within 128 bytes.
    B128,
}

impl Swizzle {
    /// The mode with the number of `CUtensorMapSwizzle`.
    pub fn from_number(number: u32) -> Option<Self> {
        [Self::None, Self::B32, Self::B64, Self::B128].get(number as usize).copied()
    }

    /// Bytes of a row within which pieces change places.
    pub fn span(self) -> u64 {
        match self {
            Self::None => 16,
            Self::B32 => 32,
            Self::B64 => 64,
            Self::B128 => 128,
        }
    }

    /// Where the byte at an address of shared memory really lies.
    #[inline]
    pub(crate) fn apply(self, address: u64) -> u64 {
        address ^ (address >> 3 & (self.span() - 16))
    }
}

/// A tile of a tensor in device memory. Dimension 0 is the one whose elements are neighbours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorMap {
    /// The type of the elements.
    pub element: TensorType,
    /// The address of the tensor.
    pub address: u64,
    /// Elements along each of 1 to 5 dimensions.
    pub sizes: Vec<u64>,
    /// Bytes from one index of dimension 1 and up to the next: one fewer than `sizes`.
    pub strides: Vec<u64>,
    /// Elements of a tile along each dimension, steps over left-out elements included.
    pub tile: Vec<u32>,
    /// Of how many elements along each dimension one is taken. That of dimension 0 is ignored.
    pub element_strides: Vec<u32>,
    /// `CUtensorMapInterleave`: 0 for none. Copies refuse others.
    pub interleave: u32,
    /// The order in shared memory.
    pub swizzle: Swizzle,
    /// `CUtensorMapL2promotion`, which changes nothing here.
    pub promotion: u32,
    /// Whether what lies outside of the tensor reads as NaN instead of zero.
    pub fill_nan: bool,
}

/// What of a tensor map is not allowed: `cuTensorMapEncodeTiled` answers
/// `CUDA_ERROR_INVALID_VALUE`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TensorMapError {
    /// A number of dimensions.
    #[error("{0} dimensions: 1 to 5, with interleaving from 3")]
    Rank(usize),
    /// Lists of other lengths than the number of dimensions.
    #[error("{what}: {found} entries instead of {expected}")]
    Length {
        /// Which list.
        what: &'static str,
        /// Entries that it should have.
        expected: usize,
        /// Entries that it has.
        found: usize,
    },
    /// A value outside of what it may be.
    #[error("{what} of dimension {dimension} is {value}: {rule}")]
    Value {
        /// Which list.
        what: &'static str,
        /// The dimension.
        dimension: usize,
        /// The value.
        value: u64,
        /// What is allowed.
        rule: &'static str,
    },
    /// An address that isn't aligned.
    #[error("address {address:#x} is not a multiple of {align}")]
    Address {
        /// The address.
        address: u64,
        /// What it must be a multiple of.
        align: u64,
    },
    /// A tile whose rows don't fit the order in shared memory.
    #[error("rows of {bytes} bytes with swizzle {swizzle:?}: a multiple of 16, at most the span")]
    Row {
        /// Bytes of a tile's row.
        bytes: u64,
        /// The order in shared memory.
        swizzle: Swizzle,
    },
    /// Interleaving of 32 bytes goes with a swizzle of 32 bytes.
    #[error("interleave {interleave} with swizzle {swizzle:?}")]
    Interleave {
        /// `CUtensorMapInterleave`.
        interleave: u32,
        /// The order in shared memory.
        swizzle: Swizzle,
    },
    /// NaN fills only floating point numbers.
    #[error("elements of type {0:?} can't be filled with NaN")]
    Fill(TensorType),
}

/// A list's name, what is allowed in words, the list, and what is allowed.
type Rule<'a> = (&'static str, &'static str, Vec<u64>, &'a dyn Fn(u64) -> bool);

impl TensorMap {
    /// The dimensions.
    pub fn rank(&self) -> usize {
        self.sizes.len()
    }

    /// Checks the rules of `cuTensorMapEncodeTiled` and makes the 128 bytes that kernels get.
    ///
    /// # Errors
    ///
    /// The first rule that is broken.
    pub fn encode(&self) -> Result<[u8; BYTES], TensorMapError> {
        self.check()?;
        let mut bytes = Vec::with_capacity(BYTES);
        bytes.extend(MARK);
        bytes.extend([
            self.element as u8,
            self.rank() as u8,
            self.swizzle as u8,
            u8::from(self.fill_nan),
        ]);
        bytes.extend(self.address.to_le_bytes());
        let of = |list: &[u32], index: usize| list.get(index).copied().unwrap_or(1);
        for index in 0..RANK {
            let size = self.sizes.get(index).copied().unwrap_or(1);
            bytes.extend((size.wrapping_sub(1) as u32).to_le_bytes());
        }
        for index in 0..RANK - 1 {
            bytes.extend(self.strides.get(index).copied().unwrap_or(0).to_le_bytes());
        }
        for index in 0..RANK {
            bytes.extend((of(&self.tile, index) as u16).to_le_bytes());
        }
        bytes.extend((0..RANK).map(|index| of(&self.element_strides, index) as u8));
        bytes.extend([self.interleave as u8, self.promotion as u8]);
        bytes.resize(BYTES, 0);
        let mut all = [0; BYTES];
        all.copy_from_slice(&bytes);
        Ok(all)
    }

    fn check(&self) -> Result<(), TensorMapError> {
        let rank = self.rank();
        if !(if self.interleave == 0 { 1..=RANK } else { 3..=RANK }).contains(&rank) {
            return Err(TensorMapError::Rank(rank));
        }
        for (what, expected, found) in [
            ("strides", rank - 1, self.strides.len()),
            ("tile", rank, self.tile.len()),
            ("element strides", rank, self.element_strides.len()),
        ] {
            if expected != found {
                return Err(TensorMapError::Length { what, expected, found });
            }
        }
        let align = if self.interleave == 2 { 32 } else { 16 };
        if !self.address.is_multiple_of(align) {
            return Err(TensorMapError::Address { address: self.address, align });
        }
        let rules: [Rule<'_>; 4] = [
            ("size", "1 to 2^32", self.sizes.clone(), &|v| (1..=1 << 32).contains(&v)),
            (
                "stride",
                "a multiple of 16 (32 with interleave 2) below 2^40",
                self.strides.clone(),
                &|v| v.is_multiple_of(align) && v < 1 << 40,
            ),
            ("tile", "1 to 256", self.tile.iter().map(|v| u64::from(*v)).collect(), &|v| {
                (1..=256).contains(&v)
            }),
            (
                "element stride",
                "1 to 8",
                self.element_strides.iter().map(|v| u64::from(*v)).collect(),
                &|v| (1..=8).contains(&v),
            ),
        ];
        for (what, rule, values, holds) in rules {
            if let Some(dimension) = values.iter().position(|value| !holds(*value)) {
                let value = values.get(dimension).copied().unwrap_or_default();
                return Err(TensorMapError::Value { what, dimension, value, rule });
            }
        }
        let (bytes, swizzle) = (self.row_bytes(), self.swizzle);
        let fits = swizzle == Swizzle::None || bytes <= swizzle.span();
        if self.interleave == 0 && !(bytes.is_multiple_of(16) && fits) {
            return Err(TensorMapError::Row { bytes, swizzle });
        }
        let interleave = self.interleave;
        if interleave > 2 || interleave == 2 && swizzle != Swizzle::B32 {
            return Err(TensorMapError::Interleave { interleave, swizzle });
        }
        if self.fill_nan && !self.element.is_float() {
            return Err(TensorMapError::Fill(self.element));
        }
        Ok(())
    }

    /// Bytes of a tile along dimension 0.
    pub(crate) fn row_bytes(&self) -> u64 {
        self.tile.first().map_or(0, |size| u64::from(*size) * self.element.bytes())
    }

    /// Elements that a tile has along a dimension.
    pub(crate) fn tile_size(&self, dimension: usize) -> u64 {
        let size = self.tile.get(dimension).copied().unwrap_or(1);
        u64::from(size.div_ceil(self.step(dimension) as u32))
    }

    /// How many elements apart neighbours of a tile are along a dimension.
    pub(crate) fn step(&self, dimension: usize) -> u64 {
        match dimension {
            0 => 1,
            _ => u64::from(self.element_strides.get(dimension).copied().unwrap_or(1).max(1)),
        }
    }

    /// Bytes of a tile.
    pub(crate) fn tile_bytes(&self) -> u64 {
        (0..self.rank()).map(|d| self.tile_size(d)).product::<u64>() * self.element.bytes()
    }

    /// Reads what [`Self::encode`] made; none of other bytes.
    pub fn decode(bytes: &[u8; BYTES]) -> Option<Self> {
        let number = |at: usize, size: usize| -> Option<u64> {
            let mut value = [0; 8];
            value.get_mut(..size)?.copy_from_slice(bytes.get(at..at + size)?);
            Some(u64::from_le_bytes(value))
        };
        if bytes.first_chunk() != Some(&MARK) {
            return None;
        }
        let rank = usize::from(bytes[5]);
        let list = |at: usize, size: usize, count: usize| -> Option<Vec<u64>> {
            (0..count).map(|index| number(at + index * size, size)).collect()
        };
        let short = |values: Vec<u64>| values.into_iter().map(|value| value as u32).collect();
        let map = Self {
            element: TensorType::from_number(u32::from(bytes[4]))?,
            address: number(8, 8)?,
            sizes: list(16, 4, rank.min(RANK))?.into_iter().map(|size| size + 1).collect(),
            strides: list(36, 8, rank.clamp(1, RANK) - 1)?,
            tile: short(list(68, 2, rank.min(RANK))?),
            element_strides: short(list(78, 1, rank.min(RANK))?),
            interleave: u32::from(bytes[83]),
            swizzle: Swizzle::from_number(u32::from(bytes[6]))?,
            promotion: u32::from(bytes[84]),
            fill_nan: bytes[7] == 1,
        };
        (rank <= RANK && map.check().is_ok()).then_some(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> TensorMap {
        TensorMap {
            element: TensorType::Bfloat16,
            address: 0x7000_0000_0000,
            sizes: vec![1 << 32, 7, 3],
            strides: vec![4096, 1 << 39],
            tile: vec![64, 256, 2],
            element_strides: vec![1, 2, 8],
            interleave: 0,
            swizzle: Swizzle::B128,
            promotion: 3,
            fill_nan: true,
        }
    }

    #[test]
    fn a_map_comes_back_from_its_bytes() {
        let bytes = map().encode().unwrap();
        assert_eq!(TensorMap::decode(&bytes), Some(map()));
        assert_eq!(TensorMap::decode(&[0; BYTES]), None);
    }

    #[test]
    fn maps_against_the_rules_are_refused() {
        type Change = fn(&mut TensorMap);
        let rules: [(&str, Change); 9] = [
            ("dimensions", |map| map.sizes = Vec::new()),
            ("entries", |map| map.strides = vec![16]),
            ("not a multiple of 16", |map| map.address += 8),
            ("size", |map| map.sizes[1] = 0),
            ("stride", |map| map.strides[0] = 24),
            ("tile", |map| map.tile[1] = 257),
            ("element stride", |map| map.element_strides[2] = 9),
            ("rows of 256", |map| map.tile[0] = 128),
            ("NaN", |map| map.element = TensorType::Uint16),
        ];
        for (part, change) in rules {
            let mut map = map();
            change(&mut map);
            let error = map.encode().expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_swizzle_moves_pieces_within_their_row() {
        assert_eq!(Swizzle::B128.apply(128 + 16), 128);
        assert_eq!(Swizzle::B128.apply(7 * 128 + 5), 7 * 128 + 7 * 16 + 5);
        assert_eq!(Swizzle::B64.apply(128 + 48), 128 + 32);
        assert_eq!(Swizzle::B32.apply(128), 128 + 16);
        assert_eq!(Swizzle::None.apply(0x1238), 0x1238);
        for swizzle in [Swizzle::B32, Swizzle::B64, Swizzle::B128] {
            for address in (0..4096).step_by(16) {
                let moved = swizzle.apply(address);
                assert_eq!(moved / swizzle.span(), address / swizzle.span());
                assert_eq!(swizzle.apply(moved), address);
            }
        }
    }
}
