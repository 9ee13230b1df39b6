//! Functions that are active more than once: their registers are saved around calls, and their
//! local variables live in frames.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use crate::check::Problem;

use super::action::Action;
use super::context::{Context, Trap, lanes};
use super::registers::{LANES, Row};

/// Bytes of frames of a thread.
pub(crate) const STACK_LIMIT: usize = 16 << 10;

/// What a function that may be active more than once uses; known when it has been compiled.
#[derive(Debug, Default)]
pub(crate) struct Frame {
    pub(crate) rows: Range<usize>,
    /// Rows that each register takes, in order.
    pub(crate) widths: Vec<usize>,
    pub(crate) predicates: Range<usize>,
    /// Parameters, and arguments and results of calls, in local memory.
    pub(crate) locals: Vec<Range<usize>>,
    /// Bytes of its local variables.
    pub(crate) bytes: usize,
}

/// The frame of a function, which its calls are compiled before.
pub(crate) type LaterFrame = Arc<OnceLock<Frame>>;

/// What a function's lanes held before a call.
#[derive(Debug)]
pub(crate) struct Saved {
    rows: Vec<Row>,
    predicates: Vec<u32>,
    /// Of each lane, one after the other.
    locals: Vec<u8>,
}

/// Saves what a function holds, and makes room for another frame.
pub(crate) fn save(frame: &LaterFrame) -> Action {
    let frame = Arc::clone(frame);
    Action::warp(move |context, mask| {
        let Some(frame) = frame.get() else { return Ok(()) };
        for lane in lanes(mask) {
            // Also calls without variables end somewhere.
            let place = &mut context.core.stack[lane];
            *place += frame.bytes.max(16);
            if *place + frame.bytes > STACK_LIMIT {
                let limit = STACK_LIMIT;
                return Err(Trap::lane(lane, Problem::StackOverflow { limit }));
            }
        }
        let registers = &context.core.registers;
        let rows = registers.rows.get(frame.rows.clone()).unwrap_or(&[]).to_vec();
        let predicates = registers.predicates.get(frame.predicates.clone()).unwrap_or(&[]).to_vec();
        let mut locals = Vec::new();
        for_locals(context, frame, u32::MAX, |place| locals.extend_from_slice(place));
        context.core.saved.push(Saved { rows, predicates, locals });
        Ok(())
    })
}

/// Gives a function back what it held before the call.
pub(crate) fn restore(frame: &LaterFrame) -> Action {
    let frame = Arc::clone(frame);
    Action::warp(move |context, mask| {
        let (Some(frame), Some(saved)) = (frame.get(), context.core.saved.pop()) else {
            return Ok(());
        };
        for lane in lanes(mask) {
            let place = &mut context.core.stack[lane];
            *place = place.saturating_sub(frame.bytes.max(16));
        }
        let registers = &mut context.core.registers;
        let rows = registers.rows.get_mut(frame.rows.clone()).unwrap_or_default();
        restore_rows(rows, &saved.rows, &frame.widths, mask);
        let predicates = registers.predicates.get_mut(frame.predicates.clone());
        for (now, before) in predicates.unwrap_or_default().iter_mut().zip(saved.predicates) {
            *now = *now & !mask | before & mask;
        }
        let bytes: usize = frame.locals.iter().map(Range::len).sum();
        for lane in lanes(mask) {
            let mut before = saved.locals.get(lane * bytes..).unwrap_or(&[]);
            for_locals(context, frame, 1 << lane, |place| {
                if let Some((own, rest)) = before.split_at_checked(place.len()) {
                    place.copy_from_slice(own);
                    before = rest;
                }
            });
        }
        Ok(())
    })
}

fn restore_rows(rows: &mut [Row], before: &[Row], widths: &[usize], mask: u32) {
    if mask == u32::MAX && rows.len() == before.len() {
        rows.copy_from_slice(before);
        return;
    }
    let (mut rows, mut before) = (rows, before);
    for width in widths {
        let (Some((now, rest)), Some((old, old_rest))) =
            (rows.split_at_mut_checked(*width), before.split_at_checked(*width))
        else {
            return;
        };
        (rows, before) = (rest, old_rest);
        for lane in lanes(mask) {
            if let ([now], [old]) = (&mut *now, old) {
                now.0[lane] = old.0[lane];
            } else {
                // Two rows are 32 values of 8 bytes.
                let now: &mut [u64] = bytemuck::cast_slice_mut(now);
                let old: &[u64] = bytemuck::cast_slice(old);
                now[lane] = old[lane];
            }
        }
    }
}

fn for_locals(
    context: &mut Context<'_, '_>,
    frame: &Frame,
    mask: u32,
    mut f: impl FnMut(&mut [u8]),
) {
    let stride = context.env.kernel.local_bytes;
    for lane in lanes(mask) {
        for range in &frame.locals {
            let place = lane * stride + range.start..lane * stride + range.end;
            if let Some(place) = context.core.local.get_mut(place) {
                f(place);
            }
        }
    }
}

/// Sets a register to the address of a variable in the frame of each lane.
pub(crate) fn address_of(row: u32, offset: u64) -> Action {
    Action::warp(move |context, mask| {
        let stack: [usize; LANES] = context.core.stack;
        for lane in lanes(mask) {
            let address = stack[lane] as u64 + offset;
            context.core.registers.set_lane(row, true, lane, address);
        }
        Ok(())
    })
}
