//! The parameter block of a launch.

use bytemuck::NoUninit;

use super::tensor_map::{TensorMap, TensorMapError};

/// Arguments of a kernel, one after the other, each aligned to its size as CUDA has it.
///
/// ```
/// use cuda_emulator::Arguments;
///
/// let block = Arguments::new().with(7i32).with(0x7000_0000_0000u64).with(0.5f32);
/// assert_eq!(block.bytes().len(), 20);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Arguments {
    bytes: Vec<u8>,
}

impl Arguments {
    /// No arguments.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a number, or the address of device memory as a `u64`.
    #[must_use]
    pub fn with<T: NoUninit>(mut self, value: T) -> Self {
        let aligned = self.bytes.len().next_multiple_of(align_of::<T>());
        self.bytes.resize(aligned, 0);
        self.bytes.extend_from_slice(bytemuck::bytes_of(&value));
        self
    }

    /// Appends a tensor map, as `__grid_constant__` parameters are passed.
    ///
    /// # Errors
    ///
    /// When the map breaks the rules of `cuTensorMapEncodeTiled`.
    pub fn with_map(mut self, map: &TensorMap) -> Result<Self, TensorMapError> {
        let bytes = map.encode()?;
        self.bytes.resize(self.bytes.len().next_multiple_of(64), 0);
        self.bytes.extend_from_slice(&bytes);
        Ok(self)
    }

    /// The parameter block.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
