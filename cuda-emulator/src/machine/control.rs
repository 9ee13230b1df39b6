//! Where the lanes that a branch separates meet again: at its immediate post-dominator.

use super::action::{Action, NOWHERE, Step};

/// Sets `join` of every branch. Functions are told apart by their first instructions, which
/// begin at `entries`.
pub(crate) fn find_joins(steps: &mut [Step], entries: &[u32]) {
    let mut bounds: Vec<usize> = entries.iter().map(|entry| *entry as usize).collect();
    bounds.push(steps.len());
    bounds.sort_unstable();
    bounds.dedup();
    for pair in bounds.windows(2) {
        if let Some(function) = steps.get_mut(pair[0]..pair[1]) {
            joins_of_function(function, pair[0]);
        }
    }
}

fn joins_of_function(steps: &mut [Step], first: usize) {
    let count = steps.len();
    let leaders = leaders(steps, first);
    let block_of = |step: usize| leaders.partition_point(|leader| *leader <= step) - 1;
    let blocks = leaders.len();
    let exit = blocks;
    // Successors of each block; the exit comes after the last.
    let mut successors: Vec<Vec<usize>> = Vec::with_capacity(blocks);
    for block in 0..blocks {
        let end = leaders.get(block + 1).copied().unwrap_or(count);
        let Some(step) = steps.get(end - 1) else { continue };
        let mut next: Vec<usize> = targets(step)
            .map(|target| target as usize)
            .map(|target| target.checked_sub(first).filter(|at| *at < count).map_or(exit, block_of))
            .collect();
        let ends = matches!(step.action, Action::Return | Action::Exit);
        let leaves = matches!(step.action, Action::Branch { .. } | Action::Table { .. }) || ends;
        if step.guard.is_some() || !leaves {
            next.push(if end < count { block_of(end) } else { exit });
        }
        if ends && step.guard.is_none() {
            next.push(exit);
        }
        successors.push(next);
    }
    let joins = post_dominators(&successors);
    for block in 0..blocks {
        let end = leaders.get(block + 1).copied().unwrap_or(count);
        let join = joins.get(block).copied().flatten().filter(|join| *join != exit);
        let at = join.and_then(|join| leaders.get(join)).map(|at| (at + first) as u32);
        if let Some(step) = steps.get_mut(end - 1) {
            step.join = at.unwrap_or(NOWHERE);
        }
    }
}

/// Instructions that begin a basic block.
fn leaders(steps: &[Step], first: usize) -> Vec<usize> {
    let mut is_leader = vec![false; steps.len() + 1];
    is_leader[0] = true;
    for (at, step) in steps.iter().enumerate() {
        for target in targets(step) {
            if let Some(target) = (target as usize).checked_sub(first)
                && let Some(mark) = is_leader.get_mut(target)
            {
                *mark = true;
            }
        }
        let control = !matches!(
            step.action,
            Action::Lanes(_)
                | Action::Warp(_)
                | Action::Wait(_)
                | Action::Barrier(_)
                | Action::Call { .. }
        );
        if control {
            is_leader[at + 1] = true;
        }
    }
    (0..steps.len()).filter(|at| is_leader[*at]).collect()
}

fn targets(step: &Step) -> impl Iterator<Item = u32> + '_ {
    let (one, many): (Option<u32>, &[u32]) = match &step.action {
        Action::Branch { target } => (Some(*target), &[]),
        Action::Table { targets, .. } => (None, targets),
        _ => (None, &[]),
    };
    one.into_iter().chain(many.iter().copied())
}

/// Immediate post-dominators, as immediate dominators of the graph turned around (Cooper, Harvey
/// and Kennedy, "A simple, fast dominance algorithm"). The exit is the node after the last.
/// Blocks from which no exit is reached have none.
fn post_dominators(successors: &[Vec<usize>]) -> Vec<Option<usize>> {
    let exit = successors.len();
    let mut predecessors: Vec<Vec<usize>> = vec![Vec::new(); exit + 1];
    for (block, next) in successors.iter().enumerate() {
        for target in next {
            if let Some(list) = predecessors.get_mut(*target) {
                list.push(block);
            }
        }
    }
    // The order in which a walk from the exit leaves the blocks.
    let mut order = Vec::with_capacity(exit + 1);
    let mut number = vec![usize::MAX; exit + 1];
    let mut seen = vec![false; exit + 1];
    let mut stack = vec![(exit, 0)];
    seen[exit] = true;
    while let Some((block, child)) = stack.pop() {
        if let Some(next) = predecessors[block].get(child) {
            stack.push((block, child + 1));
            if !seen[*next] {
                seen[*next] = true;
                stack.push((*next, 0));
            }
        } else {
            number[block] = order.len();
            order.push(block);
        }
    }
    let mut dominator: Vec<Option<usize>> = vec![None; exit + 1];
    dominator[exit] = Some(exit);
    let mut changed = true;
    while changed {
        changed = false;
        for &block in order.iter().rev().filter(|block| **block != exit) {
            let mut best: Option<usize> = None;
            for &next in successors[block].iter().filter(|next| dominator[**next].is_some()) {
                best = Some(match best {
                    None => next,
                    Some(other) => meet(other, next, &dominator, &number),
                });
            }
            if best.is_some() && dominator[block] != best {
                dominator[block] = best;
                changed = true;
            }
        }
    }
    dominator.truncate(exit);
    dominator
}

fn meet(mut a: usize, mut b: usize, dominator: &[Option<usize>], number: &[usize]) -> usize {
    while a != b {
        while number[a] < number[b] {
            a = dominator[a].unwrap_or(a);
        }
        while number[b] < number[a] {
            b = dominator[b].unwrap_or(b);
        }
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_of_a_condition_meet_behind_it() {
        // 0 -> 1, 2; 1 -> 3; 2 -> 3; 3 -> exit.
        let joins = post_dominators(&[vec![1, 2], vec![3], vec![3], vec![4]]);
        assert_eq!(joins, [Some(3), Some(3), Some(3), Some(4)]);
    }

    #[test]
    fn a_loop_is_left_together() {
        // 0 -> 1; 1 -> 1, 2; 2 -> exit.
        let joins = post_dominators(&[vec![1], vec![1, 2], vec![3]]);
        assert_eq!(joins[1], Some(2));
    }

    #[test]
    fn an_early_end_leaves_only_the_exit_to_meet_at() {
        // 0 -> 1, 2; 1 -> exit; 2 -> exit.
        let joins = post_dominators(&[vec![1, 2], vec![3], vec![3]]);
        assert_eq!(joins[0], Some(3));
    }

    #[test]
    fn an_endless_loop_has_no_post_dominator() {
        let joins = post_dominators(&[vec![1], vec![0]]);
        assert_eq!(joins, [None, None]);
    }
}
