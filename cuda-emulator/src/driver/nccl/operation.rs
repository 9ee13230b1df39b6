//! What ranks do together, and whether their calls belong together.

use crate::check::Problem;
use crate::driver::Driver;
use crate::driver::blas::Element;
use crate::driver::library::{Fault, Operand};

/// A call of a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// What is done.
    pub kind: Kind,
    /// The address that is read.
    pub send: u64,
    /// The address that is written.
    pub receive: u64,
    /// Elements, as the call counts them.
    pub count: u64,
    /// Their type.
    pub datum: Datum,
}

/// The operations of NCCL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Every rank gets the reduction of all.
    AllReduce(Reduction),
    /// The root gets the reduction of all.
    Reduce(Reduction, usize),
    /// Every rank gets what the root has.
    Broadcast(usize),
    /// Every rank gets what all have, one after the other.
    AllGather,
    /// Every rank gets its part of the reduction of all.
    ReduceScatter(Reduction),
    /// To a rank.
    Send(usize),
    /// From a rank.
    Receive(usize),
}

/// How values are put together. Floating point values are rounded to their type after each rank,
/// in the order of the ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // They are what they are called.
pub enum Reduction {
    Sum,
    Product,
    Maximum,
    Minimum,
    Average,
}

/// A type of `ncclDataType_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datum(Form);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Whole { bytes: u64, signed: bool },
    Real(Element),
}

impl Reduction {
    /// By its number in `nccl.h`.
    pub fn of(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Sum,
            1 => Self::Product,
            2 => Self::Maximum,
            3 => Self::Minimum,
            4 => Self::Average,
            _ => return None,
        })
    }
}

impl Datum {
    /// By its number in `nccl.h`.
    pub fn of(number: u32) -> Option<Self> {
        let whole = |bytes, signed| Form::Whole { bytes, signed };
        Some(Self(match number {
            0 => whole(1, true),
            1 => whole(1, false),
            2 => whole(4, true),
            3 => whole(4, false),
            4 => whole(8, true),
            5 => whole(8, false),
            6 => Form::Real(Element::F16),
            7 => Form::Real(Element::F32),
            8 => Form::Real(Element::F64),
            9 => Form::Real(Element::Bf16),
            10 => Form::Real(Element::E4m3),
            11 => Form::Real(Element::E5m2),
            _ => return None,
        }))
    }

    fn bytes(self) -> u64 {
        match self.0 {
            Form::Whole { bytes, .. } => bytes,
            Form::Real(element) => element.bytes(),
        }
    }

    fn name(self) -> String {
        match self.0 {
            Form::Whole { bytes, signed } => {
                format!("{}{}", if signed { "int" } else { "uint" }, 8 * bytes)
            }
            Form::Real(element) => format!("{element:?}").to_lowercase(),
        }
    }

    /// Reduces `values` of the ranks into the first.
    fn reduce(self, reduction: Reduction, values: &[Vec<u8>]) -> Vec<u8> {
        let mut result = values.first().cloned().unwrap_or_default();
        let size = self.bytes() as usize;
        for other in values.iter().skip(1) {
            for (all, one) in result.chunks_mut(size).zip(other.chunks(size)) {
                self.combine(reduction, all, one);
            }
        }
        if reduction == Reduction::Average {
            for all in result.chunks_mut(size) {
                self.divide(all, values.len());
            }
        }
        result
    }

    fn combine(self, reduction: Reduction, all: &mut [u8], one: &[u8]) {
        match self.0 {
            Form::Real(element) => {
                let (a, b) = (element.read(all), element.read(one));
                let value = match reduction {
                    Reduction::Sum | Reduction::Average => a + b,
                    Reduction::Product => a * b,
                    Reduction::Maximum => a.max(b),
                    Reduction::Minimum => a.min(b),
                };
                element.write(value, all);
            }
            Form::Whole { signed, .. } => {
                let (a, b) = (whole(all, signed), whole(one, signed));
                let value = match reduction {
                    Reduction::Sum | Reduction::Average => a + b,
                    Reduction::Product => a.wrapping_mul(b),
                    Reduction::Maximum => a.max(b),
                    Reduction::Minimum => a.min(b),
                };
                put(value, all);
            }
        }
    }

    fn divide(self, all: &mut [u8], count: usize) {
        match self.0 {
            Form::Real(element) => {
                let value = element.read(all) / count as f64;
                element.write(value, all);
            }
            Form::Whole { signed, .. } => {
                let value = whole(all, signed) / count.max(1) as i128;
                put(value, all);
            }
        }
    }
}

fn whole(bytes: &[u8], signed: bool) -> i128 {
    let mut word = [0; 8];
    for (to, from) in word.iter_mut().zip(bytes) {
        *to = *from;
    }
    let unused = 64 - 8 * bytes.len().clamp(1, 8) as u32;
    let bits = u64::from_le_bytes(word) << unused;
    if signed { i128::from(bits as i64 >> unused) } else { i128::from(bits >> unused) }
}

/// The low bytes of a number: integers wrap.
fn put(value: i128, bytes: &mut [u8]) {
    for (to, from) in bytes.iter_mut().zip(value.to_le_bytes()) {
        *to = from;
    }
}

impl Operation {
    /// Its name with what ranks must agree on.
    pub(super) fn describe(&self) -> String {
        let (count, datum) = (self.count, self.datum.name());
        let reduced = |reduction: Reduction| format!("{reduction:?}").to_lowercase();
        match self.kind {
            Kind::AllReduce(r) => format!("all-reduce ({}) of {count} {datum}", reduced(r)),
            Kind::Reduce(r, root) => {
                format!("reduce ({}) of {count} {datum} to rank {root}", reduced(r))
            }
            Kind::Broadcast(root) => format!("broadcast of {count} {datum} from rank {root}"),
            Kind::AllGather => format!("all-gather of {count} {datum}"),
            Kind::ReduceScatter(r) => format!("reduce-scatter ({}) of {count} {datum}", reduced(r)),
            Kind::Send(peer) => format!("send of {count} {datum} to rank {peer}"),
            Kind::Receive(peer) => format!("receive of {count} {datum} from rank {peer}"),
        }
    }

    /// Whether the call of another rank belongs to it.
    pub(super) fn fits(&self, other: &Self) -> bool {
        let paired = matches!(
            (self.kind, other.kind),
            (Kind::Send(_), Kind::Receive(_)) | (Kind::Receive(_), Kind::Send(_))
        );
        (paired || self.kind == other.kind)
            && self.count == other.count
            && self.datum == other.datum
    }

    /// Elements that are read and written, given the number of ranks and whether it is the root.
    fn lengths(&self, ranks: u64, is_root: bool) -> Option<(u64, u64)> {
        let one = self.count.checked_mul(self.datum.bytes())?;
        let all = one.checked_mul(ranks)?;
        Some(match self.kind {
            Kind::AllReduce(_) => (one, one),
            Kind::Reduce(..) => (one, if is_root { one } else { 0 }),
            Kind::Broadcast(_) => (if is_root { one } else { 0 }, one),
            Kind::AllGather => (one, all),
            Kind::ReduceScatter(_) => (all, one),
            Kind::Send(_) => (one, 0),
            Kind::Receive(_) => (0, one),
        })
    }

    fn root(&self) -> Option<usize> {
        match self.kind {
            Kind::Reduce(_, root) | Kind::Broadcast(root) => Some(root),
            _ => None,
        }
    }
}

/// Does what ranks do together: each with its number, its device and its call, in order.
pub(super) fn execute(
    driver: &mut Driver,
    ranks: usize,
    calls: &[(usize, usize, Operation)],
) -> Result<(), Fault> {
    let mut sent = Vec::with_capacity(calls.len());
    for (rank, device, operation) in calls {
        let is_root = operation.root() == Some(*rank);
        let lengths = operation.lengths(ranks as u64, is_root);
        let (read, written) = lengths.ok_or_else(|| {
            let what = format!("rank {rank}: {} is too much", operation.describe());
            Fault::new(Problem::RankMismatch { what }, "count")
        })?;
        let operand = Operand { name: "send buffer", access: "load" };
        sent.push(if read > 0 {
            driver.load(*device, &operand, operation.send, read)?
        } else {
            Vec::new()
        });
        if written > 0 {
            let operand = Operand { name: "receive buffer", access: "store" };
            driver.reach(*device, &operand, operation.receive, written)?;
        }
        if read > 0 && written > 0 && !in_place(operation, *rank, read.min(written)) {
            let apart = operation.send + read <= operation.receive
                || operation.receive + written <= operation.send;
            if !apart {
                let what = format!("send and receive buffer of rank {rank}");
                driver.complain(Problem::Overlap { what }, "receive buffer");
            }
        }
    }
    let Some((_, _, first)) = calls.first() else { return Ok(()) };
    let whole = match first.kind {
        Kind::AllReduce(reduction)
        | Kind::Reduce(reduction, _)
        | Kind::ReduceScatter(reduction) => first.datum.reduce(reduction, &sent),
        // One of them has what the others get.
        Kind::Broadcast(_) | Kind::AllGather | Kind::Send(_) | Kind::Receive(_) => sent.concat(),
    };
    for (rank, device, operation) in calls {
        let is_root = operation.root() == Some(*rank);
        let part = (operation.count * operation.datum.bytes()) as usize;
        let result = match operation.kind {
            Kind::Send(_) => continue,
            Kind::Reduce(..) if !is_root => continue,
            Kind::ReduceScatter(_) => whole.get(rank * part..(rank + 1) * part).unwrap_or_default(),
            _ => &whole,
        };
        if !result.is_empty() {
            let operand = Operand { name: "receive buffer", access: "store" };
            driver.store(*device, &operand, operation.receive, result)?;
        }
    }
    Ok(())
}

/// The places at which NCCL lets the two buffers of a rank overlap.
fn in_place(operation: &Operation, rank: usize, part: u64) -> bool {
    let offset = rank as u64 * part;
    match operation.kind {
        Kind::AllGather => operation.send == operation.receive + offset,
        Kind::ReduceScatter(_) => operation.receive == operation.send + offset,
        _ => operation.send == operation.receive,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reduce(datum: u32, reduction: Reduction, values: &[&[u8]]) -> Vec<u8> {
        let values: Vec<Vec<u8>> = values.iter().map(|bytes| bytes.to_vec()).collect();
        Datum::of(datum).unwrap().reduce(reduction, &values)
    }

    #[test]
    fn integers_wrap_and_keep_their_sign() {
        assert_eq!(reduce(0, Reduction::Sum, &[&[127], &[1]]), [128]);
        assert_eq!(reduce(0, Reduction::Minimum, &[&[0xff], &[1]]), [0xff]);
        assert_eq!(reduce(1, Reduction::Maximum, &[&[0xff], &[1]]), [0xff]);
        assert_eq!(reduce(0, Reduction::Average, &[&[0xfc], &[0xfe]]), [0xfd]);
        let large = u64::MAX.to_le_bytes();
        assert_eq!(reduce(5, Reduction::Product, &[&large, &large]), 1u64.to_le_bytes());
    }

    #[test]
    fn halves_are_rounded_after_each_rank() {
        // 2048 + 1 is 2048 in f16, twice.
        let (big, one) = (0x6800u16.to_le_bytes(), 0x3c00u16.to_le_bytes());
        assert_eq!(reduce(6, Reduction::Sum, &[&big, &one, &one]), big);
        let values = [1.0f32.to_le_bytes(), 2.0f32.to_le_bytes()];
        let average = reduce(7, Reduction::Average, &[&values[0], &values[1]]);
        assert_eq!(average, 1.5f32.to_le_bytes());
    }
}
