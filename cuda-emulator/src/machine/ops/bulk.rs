//! `cp.async.bulk`, `st.async` and `red.async`: copies that an mbarrier or a group waits for.

use crate::check::{Access, Problem};
use crate::machine::action::{Action, Address};
use crate::machine::bulk::{Flight, Signal, Store, Target, Update};
use crate::machine::cluster::cluster_address;
use crate::machine::context::{Context, Trap, lanes};
use crate::machine::form::{Form, Predicate};
use crate::machine::names::{LOCAL_WINDOW, Register, SHARED_WINDOW};
use crate::machine::registers::Slot;
use crate::machine::tensor_map::{RANK, Swizzle, TensorMap};
use crate::ptx::{Operand, PtxError, Space, Type};

use super::{atomic, mbarrier};

type Compiled = Result<Action, PtxError>;

/// `cp.async.bulk…` and `cp.reduce.async.bulk…`, after `cp`.
pub(super) fn copy(form: &mut Form<'_, '_>, reduces: bool) -> Compiled {
    if form.flag("commit_group") {
        form.expect(0)?;
        return Ok(Action::warp(|context, mask| {
            context.core.stores.commit(mask);
            Ok(())
        }));
    }
    if form.flag("wait_group") {
        // With `.read` only the source is waited for; here both happen at once.
        form.flag("read");
        form.expect(1)?;
        let Ok(allowed) = u32::try_from(form.number(0)?) else {
            return Err(form.operand_error(0, "must not be negative"));
        };
        return Ok(Action::warp(move |context, mask| {
            for (lane, store) in context.core.stores.wait(mask, allowed) {
                context.finish_store(lane, &store)?;
            }
            Ok(())
        }));
    }
    let dimensions = if form.flag("tensor") {
        let found = form.choice(&[("1d", 1), ("2d", 2), ("3d", 3), ("4d", 4), ("5d", 5)]);
        let dimensions: usize = found.ok_or_else(|| form.missing("1d to 5d"))?;
        form.flag("tile");
        Some(dimensions)
    } else {
        None
    };
    form.ignore(&["L2::cache_hint"]);
    if form.flag("prefetch") {
        return prefetch(form, dimensions);
    }
    let update = if reduces { Some(reduction(form)?) } else { None };
    if form.flag("bulk_group") {
        return store(form, dimensions, update);
    }
    if update.is_some() {
        return Err(form.missing("bulk_group: other reductions are not supported"));
    }
    if !form.flag("mbarrier::complete_tx::bytes") {
        return Err(form.missing("mbarrier::complete_tx::bytes or bulk_group"));
    }
    load(form, dimensions)
}

/// The operation of a reduction and its type, or none if a tensor map has the type.
type Reduction = (&'static str, Option<Type>);

fn reduction(form: &mut Form<'_, '_>) -> Result<Reduction, PtxError> {
    let name = form
        .choice(&[
            ("add", "add"),
            ("min", "min"),
            ("max", "max"),
            ("inc", "inc"),
            ("dec", "dec"),
            ("and", "and"),
            ("or", "or"),
            ("xor", "xor"),
        ])
        .ok_or_else(|| form.missing("an operation"))?;
    form.flag("noftz");
    Ok((name, form.ty().ok()))
}

/// A register with 64 bits of `mask` of blocks, or a number.
fn multicast_mask(form: &mut Form<'_, '_>, index: usize) -> Result<Register, PtxError> {
    let operand = form.operand(index)?;
    form.source_of(index, operand, 2)
}

/// An address as a 64-bit register of its own, as a tensor map is named.
struct Tile {
    map: Address,
    space: Space,
    coordinates: Vec<Slot<u32>>,
}

impl Tile {
    fn operand(form: &mut Form<'_, '_>, index: usize, dimensions: usize) -> Result<Self, PtxError> {
        let (map, space) = form.base(index, Space::Generic)?;
        let mut elements: &[Operand] = form.coordinates(index)?;
        if let [Operand::Vector(inner)] = elements {
            elements = inner;
        }
        if elements.len() != dimensions {
            let reason = format!("{} coordinates instead of {dimensions}", elements.len());
            return Err(form.operand_error(index, reason));
        }
        let mut coordinates = Vec::new();
        for element in elements {
            coordinates.push(form.source(index, element)?);
        }
        Ok(Self { map, space, coordinates })
    }

    fn coordinates(&self, context: &Context<'_, '_>, lane: usize) -> [i32; RANK] {
        let mut all = [0; RANK];
        for (value, slot) in all.iter_mut().zip(&self.coordinates) {
            *value = context.core.registers.get(*slot)[lane] as i32;
        }
        all
    }

    /// Reads the tensor map of a lane.
    fn map(&self, context: &mut Context<'_, '_>, lane: usize) -> Result<TensorMap, Trap> {
        let address = self.map.lanes(&context.core.registers)[lane];
        if !address.is_multiple_of(64) {
            let access = Access::Read.name();
            return Err(Trap::lane(lane, Problem::Misaligned { access, address, bytes: 64 }));
        }
        let mut bytes = [0; 128];
        for (index, word) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let address = address + 8 * index as u64;
            let place = context.place(self.space, lane, address, 8, Access::Read)?;
            *word = context.load(place, 0, 8).to_le_bytes();
        }
        let map = TensorMap::decode(&bytes)
            .ok_or_else(|| wrong(lane, format!("no tensor map at {address:#x}")))?;
        if map.rank() != self.coordinates.len() {
            let (found, wanted) = (map.rank(), self.coordinates.len());
            return Err(wrong(lane, format!("a map of {found} dimensions, used with {wanted}")));
        }
        map.unsupported().map_or(Ok(map), |reason| Err(wrong(lane, reason)))
    }
}

fn wrong(lane: usize, reason: String) -> Trap {
    Trap::lane(lane, Problem::BulkCopy { reason })
}

fn aligned(lane: usize, access: Access, address: u64, bytes: u64) -> Result<(), Trap> {
    if address.is_multiple_of(bytes) {
        return Ok(());
    }
    let access = access.name();
    Err(Trap::lane(lane, Problem::Misaligned { access, address, bytes }))
}

fn whole(lane: usize, bytes: u64) -> Result<(), Trap> {
    if bytes.is_multiple_of(16) && (16..1 << 20).contains(&bytes) {
        return Ok(());
    }
    Err(wrong(lane, format!("{bytes} bytes, which is not a multiple of 16 below 2^20")))
}

/// The rank of the block that an address leads to, and the offset there.
fn locate(context: &Context<'_, '_>, address: u64) -> (u32, u64) {
    let offset = match address {
        SHARED_WINDOW..LOCAL_WINDOW => address - SHARED_WINDOW,
        other => other,
    };
    cluster_address(offset).unwrap_or((context.block.rank, offset))
}

/// Where a load takes its bytes from.
enum Source {
    Line { from: Address, space: Space, size: Slot<u32> },
    Tile(Tile),
}

/// To shared memory.
fn load(form: &mut Form<'_, '_>, dimensions: Option<usize>) -> Compiled {
    let multicast = form.flag("multicast::cluster");
    let to_cluster = form.flag("shared::cluster");
    let to_block = form.flag("shared::cta");
    let from_global = form.flag("global");
    let from_block = to_cluster && to_block;
    if !(to_cluster || to_block) || !(from_global || from_block) {
        return Err(form.missing("shared::cluster and global or shared::cta"));
    }
    let (to, _) = form.address(0, Space::Shared)?;
    let (source, at) = match dimensions {
        Some(dimensions) => (Source::Tile(Tile::operand(form, 1, dimensions)?), 2),
        None => {
            let space = if from_global { Space::Global } else { Space::Shared };
            let (from, space) = form.address(1, space)?;
            (Source::Line { from, space, size: form.src::<u32>(2)? }, 3)
        }
    };
    let barrier = mbarrier::operand(form, at)?;
    let mask_of_blocks = if multicast { Some(multicast_mask(form, at + 1)?) } else { None };
    let least = at + 1 + usize::from(multicast);
    // A cache policy may come last.
    if form.count() != least + 1 {
        form.expect(least)?;
    }
    Ok(Action::warp(move |context, mask| {
        for lane in lanes(mask) {
            let registers = &context.core.registers;
            let address = to.lanes(registers)[lane];
            let barrier = barrier.lanes(registers)[lane];
            let blocks = mask_of_blocks
                .map(|register| registers.lane(register.row, register.is_wide(), lane) as u16);
            let (data, swizzle, align) = match &source {
                Source::Line { from, space, size } => {
                    let (from, size) = (from.lanes(registers)[lane], registers.get(*size)[lane]);
                    whole(lane, u64::from(size))?;
                    aligned(lane, Access::Read, from, 16)?;
                    let data = read_line(context, *space, lane, from, u64::from(size))?;
                    (data, Swizzle::None, 16)
                }
                Source::Tile(tile) => {
                    let map = tile.map(context, lane)?;
                    let coordinates = tile.coordinates(context, lane);
                    (context.read_tile(lane, &map, &coordinates)?, map.swizzle, 128)
                }
            };
            aligned(lane, Access::Write, address, align)?;
            let (rank, offset) = locate(context, address);
            let (barrier_rank, barrier) = locate(context, barrier);
            if rank != barrier_rank {
                return Err(wrong(lane, "the mbarrier is in another block than the data".into()));
            }
            let at = context.at;
            let flight = |data: &[u8]| Flight {
                offset,
                data: data.to_vec(),
                swizzle,
                update: None,
                signal: Signal::Bytes,
                at,
            };
            let Some(blocks) = blocks else {
                context.send(lane, rank, barrier, flight(&data))?;
                continue;
            };
            for rank in (0..16).filter(|rank| blocks >> rank & 1 == 1) {
                context.send(lane, rank, barrier, flight(&data))?;
            }
        }
        Ok(())
    }))
}

fn read_line(
    context: &mut Context<'_, '_>,
    space: Space,
    lane: usize,
    from: u64,
    bytes: u64,
) -> Result<Vec<u8>, Trap> {
    if space == Space::Global {
        return context.read_line(lane, from, bytes);
    }
    // From the block's own shared memory, read at once.
    let (_, offset) = locate(context, from);
    let size = context.block.shared.len() as u64;
    let range = offset as usize..offset.saturating_add(bytes) as usize;
    let Some(data) = context.block.shared.get(range) else {
        context.outside_of("shared memory", size, lane, offset, bytes, Access::Read)?;
        return Ok(vec![0; bytes as usize]);
    };
    let data = data.to_vec();
    context.begin_reading(lane, offset, bytes)?;
    context.end_reading(offset, bytes, context.at);
    Ok(data)
}

/// From shared to device memory.
fn store(
    form: &mut Form<'_, '_>,
    dimensions: Option<usize>,
    update: Option<Reduction>,
) -> Compiled {
    if !form.flag("global") || !(form.flag("shared::cta") || form.flag("shared")) {
        return Err(form.missing("global and shared::cta"));
    }
    let (target, count) = match dimensions {
        Some(dimensions) => (Source::Tile(Tile::operand(form, 0, dimensions)?), 2),
        None => {
            let (from, space) = form.address(0, Space::Global)?;
            (Source::Line { from, space, size: form.src::<u32>(2)? }, 3)
        }
    };
    let (from, _) = form.address(1, Space::Shared)?;
    if form.count() != count + 1 {
        form.expect(count)?;
    }
    if let (None, Some((_, None))) = (dimensions, update) {
        return Err(form.missing("a type"));
    }
    if let Some((name, Some(ty))) = update
        && atomic::update(name, ty).is_none()
    {
        return Err(form.bad_type(ty));
    }
    Ok(Action::warp(move |context, mask| {
        for lane in lanes(mask) {
            let registers = &context.core.registers;
            let (_, offset) = locate(context, from.lanes(registers)[lane]);
            let (target, bytes, align, ty) = match &target {
                Source::Line { from, size, .. } => {
                    let to = from.lanes(registers)[lane];
                    let bytes = u64::from(registers.get(*size)[lane]);
                    whole(lane, bytes)?;
                    aligned(lane, Access::Write, to, 16)?;
                    (Target::Line(to), bytes, 16, update.and_then(|(_, ty)| ty))
                }
                Source::Tile(tile) => {
                    let map = tile.map(context, lane)?;
                    let coordinates = tile.coordinates(context, lane);
                    let ty = number_type(&map);
                    let bytes = map.tile_bytes();
                    (Target::Tile(Box::new(map), coordinates), bytes, 128, Some(ty))
                }
            };
            aligned(lane, Access::Read, offset, align)?;
            let found: Option<(Update, usize)> = match (update, ty) {
                (Some((name, _)), Some(ty)) => {
                    let update = atomic::update(name, bits_for(name, ty))
                        .ok_or_else(|| wrong(lane, format!("no reduction {name} of {ty:?}")))?;
                    Some((update, ty.bytes()))
                }
                _ => None,
            };
            let at = context.at;
            context.begin_store(lane, Store { offset, bytes, target, update: found, at })?;
        }
        Ok(())
    }))
}

/// The type that reductions of a tensor work with.
fn number_type(map: &TensorMap) -> Type {
    use crate::machine::tensor_map::TensorType;
    match map.element {
        TensorType::Uint8 => Type::U8,
        TensorType::Uint16 => Type::U16,
        TensorType::Uint32 => Type::U32,
        TensorType::Int32 => Type::S32,
        TensorType::Uint64 => Type::U64,
        TensorType::Int64 => Type::S64,
        TensorType::Float16 => Type::F16,
        TensorType::Bfloat16 => Type::Bf16,
        TensorType::Float64 => Type::F64,
        _ => Type::F32,
    }
}

/// Bitwise reductions know words without a sign.
fn bits_for(name: &str, ty: Type) -> Type {
    match (name, ty.bytes()) {
        ("and" | "or" | "xor", 4) => Type::B32,
        ("and" | "or" | "xor", 8) => Type::B64,
        _ => ty,
    }
}

/// A prefetch changes nothing, but its operands are read.
fn prefetch(form: &mut Form<'_, '_>, dimensions: Option<usize>) -> Compiled {
    form.ignore(&["L2", "global"]);
    if let Some(dimensions) = dimensions {
        let tile = Tile::operand(form, 0, dimensions)?;
        return Ok(Action::warp(move |context, mask| {
            for lane in lanes(mask) {
                tile.map(context, lane)?;
            }
            Ok(())
        }));
    }
    form.address(0, Space::Global)?;
    form.src::<u32>(1)?;
    Ok(Action::nothing())
}

/// `st.async`: a store to shared memory of the cluster that an mbarrier waits for.
pub(super) fn store_async(form: &mut Form<'_, '_>) -> Compiled {
    form.ignore(&["weak", "mbarrier::complete_tx::bytes"]);
    if form.space() != Space::Shared {
        return Err(form.missing("shared::cluster"));
    }
    let count = form.choice(&[("v2", 2usize), ("v4", 4)]).unwrap_or(1);
    let ty = form.ty()?;
    if !matches!(ty.bytes(), 4 | 8) || ty.bytes() * count > 16 {
        return Err(form.bad_type(ty));
    }
    asynchronous(form, count, ty, None)
}

/// `red.async`: an atomic operation of the same kind.
pub(super) fn reduce_async(form: &mut Form<'_, '_>) -> Compiled {
    form.ignore(&["relaxed", "cluster", "mbarrier::complete_tx::bytes"]);
    if form.space() != Space::Shared {
        return Err(form.missing("shared::cluster"));
    }
    let (name, ty) = reduction(form)?;
    let ty = ty.ok_or_else(|| form.missing("a type"))?;
    let update = atomic::update(name, ty).ok_or_else(|| form.bad_type(ty))?;
    asynchronous(form, 1, ty, Some(update))
}

fn asynchronous(
    form: &mut Form<'_, '_>,
    count: usize,
    ty: Type,
    update: Option<Update>,
) -> Compiled {
    form.expect(3)?;
    let size = ty.bytes();
    let (to, _) = form.address(0, Space::Shared)?;
    let elements = form.vector(1)?;
    if elements.len() != count {
        let reason = format!("{} elements instead of {count}", elements.len());
        return Err(form.operand_error(1, reason));
    }
    let mut sources = Vec::new();
    for element in elements {
        let source = form.source_of(1, element, size)?;
        if source.is_wide() != (size == 8) {
            return Err(form.operand_error(1, "a register of another width"));
        }
        sources.push(source);
    }
    let barrier = mbarrier::operand(form, 2)?;
    Ok(Action::warp(move |context, mask| {
        for lane in lanes(mask) {
            let registers = &context.core.registers;
            let address = to.lanes(registers)[lane];
            let (barrier_rank, barrier) = locate(context, barrier.lanes(registers)[lane]);
            let (rank, offset) = locate(context, address);
            if rank != barrier_rank {
                return Err(wrong(lane, "the mbarrier is in another block than the data".into()));
            }
            aligned(lane, Access::Write, offset, (size * count) as u64)?;
            let mut data = Vec::new();
            for source in &sources {
                let value = registers.lane(source.row, source.is_wide(), lane);
                data.extend(value.to_le_bytes().iter().take(size));
            }
            let flight = Flight {
                offset,
                data,
                swizzle: Swizzle::None,
                update: update.map(|update| (update, size)),
                signal: Signal::Bytes,
                at: context.at,
            };
            context.send(lane, rank, barrier, flight)?;
        }
        Ok(())
    }))
}

/// A predicate that an operand is, or a number that stands for one.
pub(super) enum Switch {
    Predicate(Predicate),
    Always(bool),
}

impl Switch {
    pub(super) fn operand(form: &mut Form<'_, '_>, index: usize) -> Result<Self, PtxError> {
        Ok(match form.operand(index)? {
            Operand::Integer(value) => Self::Always(*value != 0),
            _ => Self::Predicate(form.predicate(index)?),
        })
    }

    /// Whether it holds for the warp's first lane; all lanes have the same.
    pub(super) fn holds(&self, context: &Context<'_, '_>) -> bool {
        match self {
            Self::Always(holds) => *holds,
            Self::Predicate(predicate) => predicate.lanes(&context.core.registers) & 1 == 1,
        }
    }
}
