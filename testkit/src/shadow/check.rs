//! Whether a batch is well formed, by itself.

use engine_core::backend::{Batch, GroupId, InputToken, Limits, Want};

use super::violation::Violation;

/// Checks sizes, spans, the order of rows and what outputs name.
pub(super) fn check_batch(
    batch: &Batch<'_>,
    limits: &Limits,
    vocab_size: u32,
) -> Result<(), Violation> {
    check_sizes(batch, limits)?;
    let (mut tokens, mut outputs) = (0, 0);
    for (row, share) in batch.rows.iter().enumerate() {
        if share.tokens.len == 0 {
            return Err(Violation::EmptyRow { row });
        }
        if share.tokens.start != tokens || share.tokens.range().end > batch.tokens.len() {
            return Err(Violation::Spans { row, what: "tokens" });
        }
        if share.outputs.start != outputs || share.outputs.range().end > batch.outputs.len() {
            return Err(Violation::Spans { row, what: "outputs" });
        }
        tokens += share.tokens.len;
        outputs += share.outputs.len;
        let is_decode = row < batch.decode_rows as usize;
        if is_decode && (share.tokens.len, share.outputs.len) != (1, 1) {
            let (tokens, outputs) = (share.tokens.len, share.outputs.len);
            return Err(Violation::DecodeRow { row, tokens, outputs });
        }
        check_tokens(batch, row, vocab_size)?;
        check_outputs(batch, row, vocab_size)?;
        if let Some(other) = batch.rows[..row].iter().find(|other| other.slot == share.slot) {
            return Err(Violation::SlotTwice { slot: other.slot });
        }
    }
    if tokens as usize != batch.tokens.len() || outputs as usize != batch.outputs.len() {
        return Err(Violation::Spans { row: batch.rows.len(), what: "tokens or outputs" });
    }
    Ok(())
}

/// Checks the hints for cascade attention against the page tables, once those are known to be
/// right.
pub(super) fn check_shared(batch: &Batch<'_>, groups: usize) -> Result<(), Violation> {
    for shared in batch.shared {
        let pages = shared.pages as usize;
        for row in shared.rows.range() {
            let wrong = Violation::Shared { row, pages: shared.pages };
            let first = batch.rows.get(shared.rows.start as usize);
            let (Some(first), Some(this)) = (first, batch.rows.get(row)) else { return Err(wrong) };
            for group in (0..groups).map(|group| GroupId(group as u8)) {
                let (first, this) = (batch.pages(first, group), batch.pages(this, group));
                if this.len() < pages || first.get(..pages) != this.get(..pages) {
                    return Err(wrong);
                }
            }
        }
    }
    Ok(())
}

fn check_sizes(batch: &Batch<'_>, limits: &Limits) -> Result<(), Violation> {
    let sizes = [
        ("rows", batch.rows.len(), limits.rows),
        ("tokens", batch.tokens.len(), limits.tokens),
        ("outputs", batch.outputs.len(), limits.outputs),
        ("decode rows", batch.decode_rows as usize, batch.rows.len() as u32),
    ];
    for (what, found, limit) in sizes {
        if found > limit as usize {
            return Err(Violation::TooLarge { what, found, limit });
        }
    }
    if batch.rows.is_empty() {
        return Err(Violation::EmptyStep { step: batch.step });
    }
    Ok(())
}

fn check_tokens(batch: &Batch<'_>, row: usize, vocab_size: u32) -> Result<(), Violation> {
    let share = &batch.rows[row];
    for token in &batch.tokens[share.tokens.range()] {
        match *token {
            InputToken::Known(token) if token >= vocab_size => {
                return Err(Violation::UnknownToken { row, token, vocab_size });
            }
            InputToken::Known(_) => {}
            InputToken::Produced(named) if named != share.slot => {
                return Err(Violation::ForeignNextToken { slot: share.slot, named });
            }
            InputToken::Produced(_) if share.tokens.len != 1 => {
                return Err(Violation::NoNextToken { slot: share.slot });
            }
            InputToken::Produced(_) => {}
        }
    }
    Ok(())
}

fn check_outputs(batch: &Batch<'_>, row: usize, vocab_size: u32) -> Result<(), Violation> {
    let share = &batch.rows[row];
    let mut samples = 0;
    for index in share.outputs.range() {
        let output = &batch.outputs[index];
        let is_own =
            output.row as usize == row && share.tokens.range().contains(&(output.token as usize));
        let fits = match output.want {
            Want::Sample => {
                samples += 1;
                // The slot has one next token.
                samples == 1 && output.token as usize + 1 == share.tokens.range().end
            }
            Want::Score { token, .. } => token < vocab_size,
        };
        if !is_own || !fits {
            return Err(Violation::Output { row, output: index });
        }
    }
    Ok(())
}
