//! Matrices between shared memory and the registers of a warp: `ldmatrix`, `stmatrix`, `movmatrix`.
//!
//! A register of the warp holds a matrix of 8 rows of 8 elements of 16 bits, row by row: lane
//! `4 * row + t` has columns `2t` and `2t + 1`.

use crate::check::Access;
use crate::count::{Class, wavefronts};
use crate::machine::action::Action;
use crate::machine::form::Form;
use crate::machine::registers::{FULL, Slot};
use crate::ptx::{PtxError, Space};

use super::Op;

type Compiled = Result<Action, PtxError>;

pub(super) const TABLE: &[Op] = &[
    Op {
        name: "ldmatrix",
        class: Class::MatrixLoad,
        forms: &[
            "ldmatrix.sync.aligned.m8n8.x1(|.trans).shared.b16 {r0}, [r4]",
            "ldmatrix.sync.aligned.m8n8.x2(|.trans).shared.b16 {r0, r1}, [r4]",
            "ldmatrix.sync.aligned.m8n8.x4(|.trans).(shared|shared::cta).b16 {r0, r1, r2, r3}, [r4]",
        ],
        compile: |form| matrix_access(form, false),
    },
    Op {
        name: "stmatrix",
        class: Class::MatrixLoad,
        forms: &[
            "stmatrix.sync.aligned.m8n8.x1(|.trans).shared.b16 [r4], {r0}",
            "stmatrix.sync.aligned.m8n8.x2(|.trans).shared.b16 [r4], {r0, r1}",
            "stmatrix.sync.aligned.m8n8.x4(|.trans).shared.b16 [r4], {r0, r1, r2, r3}",
        ],
        compile: |form| matrix_access(form, true),
    },
    Op {
        name: "movmatrix",
        class: Class::MatrixLoad,
        forms: &["movmatrix.sync.aligned.m8n8.trans.b16 r0, r1"],
        compile: movmatrix,
    },
];

/// `ldmatrix` and `stmatrix`: 8 lanes give the rows of each matrix.
fn matrix_access(form: &mut Form<'_, '_>, store: bool) -> Compiled {
    for needed in ["sync", "aligned", "m8n8", "b16"] {
        if !form.flag(needed) {
            return Err(form.missing("sync.aligned.m8n8 and b16"));
        }
    }
    let count = form
        .choice(&[("x1", 1usize), ("x2", 2), ("x4", 4)])
        .ok_or_else(|| form.missing("x1, x2 or x4"))?;
    let transposed = form.flag("trans");
    if form.space() != Space::Shared {
        return Err(form.missing("shared"));
    }
    form.expect(2)?;
    let (list, at) = if store { (1, 0) } else { (0, 1) };
    let elements = form.vector(list)?;
    if elements.len() != count {
        return Err(
            form.operand_error(list, format!("{} registers instead of {count}", elements.len()))
        );
    }
    let mut slots = Vec::new();
    for element in elements {
        let slot: Slot<u32> = if store {
            form.source(list, element)?
        } else {
            form.optional_target(list, element)?
                .ok_or_else(|| form.operand_error(list, "must be a register"))?
        };
        slots.push(slot);
    }
    let (address, _) = form.address(at, Space::Shared)?;
    // 8 lanes name the rows of each matrix.
    let lanes = if count == 4 { FULL } else { (1u32 << (8 * count)) - 1 };
    Ok(Action::warp(move |context, mask| {
        context.require_lanes(FULL, mask)?;
        let addresses = address.lanes(&context.core.registers);
        let mut matrices = [Matrix::default(); 4];
        if store {
            for (matrix, slot) in matrices.iter_mut().zip(&slots) {
                let rows = bytemuck::cast(context.core.registers.get(*slot));
                *matrix = if transposed { transpose(&rows) } else { rows };
            }
            if context.env.checks.redundant_stores {
                let row = |lane: usize| matrices[lane / 8][lane % 8];
                context.watch_stores(Space::Shared, &addresses, lanes, |_, lane| row(lane));
            }
        }
        let access = if store { Access::Write } else { Access::Read };
        let rows = matrices.as_flattened_mut().iter_mut().zip(addresses).take(8 * count);
        for (lane, (row, address)) in rows.enumerate() {
            let place = context.place(Space::Shared, lane, address, 16, access)?;
            if store {
                context.store_16(place, bytemuck::cast(*row));
            } else {
                *row = bytemuck::cast(context.load_16(place));
            }
        }
        if !store {
            for (matrix, slot) in matrices.iter().zip(&slots) {
                let rows = if transposed { transpose(matrix) } else { *matrix };
                context.core.registers.set(*slot, bytemuck::cast(rows), mask);
            }
        }
        if context.env.count_memory {
            let (passes, ideal) = wavefronts(&addresses, lanes, 16);
            context.add_wavefronts(passes, ideal);
        }
        Ok(())
    }))
}

type Matrix = [[u16; 8]; 8];

#[inline(always)]
fn transpose(matrix: &Matrix) -> Matrix {
    std::array::from_fn(|row| std::array::from_fn(|column| matrix[column][row]))
}

fn movmatrix(form: &mut Form<'_, '_>) -> Compiled {
    for needed in ["sync", "aligned", "m8n8", "trans", "b16"] {
        if !form.flag(needed) {
            return Err(form.missing("sync.aligned.m8n8.trans.b16"));
        }
    }
    form.expect(2)?;
    let (target, source) = (form.dst::<u32>(0)?, form.src::<u32>(1)?);
    Ok(Action::warp(move |context, mask| {
        context.require_lanes(FULL, mask)?;
        let out = transpose(&bytemuck::cast(context.core.registers.get(source)));
        context.core.registers.set(target, bytemuck::cast(out), mask);
        Ok(())
    }))
}
