//! Proposing tokens: what followed the last time that the latest tokens occurred.
//!
//! The search is stateless. It looks at the last [`Speculation::lookback`] known tokens, 16 at a
//! time for the latest token and then backwards from each occurrence; half a microsecond for 4096
//! tokens. A sequence remembers how its proposals fared and nothing else.

use std::ops::Range;

use radix_cache::Token;

use super::config::Speculation;

/// Longer matches are as good as this one.
const MOST_MATCHED: usize = 16;

/// Tokens without proposals after the first that fails. Doubles with each that follows.
const FIRST_PAUSE: usize = 8;
const LONGEST_PAUSE: usize = 512;

/// How the proposals of one sequence have fared, and so what is proposed next.
///
/// Proposals that are accepted whole double in length. Of others, next time only as many are
/// tried as were right; where fewer than half were, there is a pause, and it doubles until
/// proposals are accepted whole again. So text that does not repeat costs a few verifications in all:
/// 7 in its first 1000 tokens, at most 2 in each 1000 after that.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drafting {
    longest: usize,
    next: usize,
    pause: usize,
    /// Known tokens before which nothing is proposed.
    resumes_at: usize,
}

impl Drafting {
    pub(super) fn new(config: Speculation) -> Self {
        let longest = usize::from(config.max_draft);
        Self { longest, next: longest.div_ceil(2), pause: FIRST_PAUSE, resumes_at: 0 }
    }

    /// Most tokens to propose after so many known ones.
    pub(super) fn most(&self, known: usize) -> usize {
        if known < self.resumes_at { 0 } else { self.next }
    }

    /// Of so many proposed tokens so many were accepted, which brought the sequence to `known`
    /// tokens.
    pub(super) fn record(&mut self, proposed: usize, accepted: usize, known: usize) {
        if accepted >= proposed {
            self.next = (2 * proposed.max(self.next)).min(self.longest);
            self.pause = FIRST_PAUSE;
            return;
        }
        self.next = accepted.max(1);
        if 2 * accepted < proposed {
            self.resumes_at = known + self.pause;
            self.pause = (2 * self.pause).min(LONGEST_PAUSE);
        }
    }
}

/// Proposes at most `most` tokens to follow the `pending` ones that follow the known `tokens`, as
/// a range of those. The longest match of the latest tokens counts, then the one that more
/// follows, then the last.
pub(super) fn propose(
    tokens: &[Token],
    pending: usize,
    most: usize,
    config: &Speculation,
) -> Option<Range<usize>> {
    let (&last, before) = tokens.split_last()?;
    if most == 0 {
        return None;
    }
    let first = before.len().saturating_sub(config.lookback as usize);
    let shortest = usize::from(config.min_match).max(1);
    let mut best: Option<((usize, usize), usize)> = None;
    let mut end = before.len();
    while let Some(at) = last_position(&before[first..end], last) {
        let at = first + at;
        end = at;
        let follow = (tokens.len() - at - 1).saturating_sub(pending).min(most);
        let matched = 1 + common_suffix(&tokens[..at], before).min(MOST_MATCHED - 1);
        let found = (matched, follow);
        if matched >= shortest && follow > 0 && best.is_none_or(|(best, _)| found > best) {
            best = Some((found, at));
            if found == (MOST_MATCHED, most) {
                break;
            }
        }
    }
    let ((_, follow), at) = best?;
    let start = at + 1 + pending;
    Some(start..start + follow)
}

/// The last place of a token, looking at a block at a time.
fn last_position(tokens: &[Token], token: Token) -> Option<usize> {
    let (rest, blocks) = tokens.as_rchunks::<16>();
    let has = |block: &[Token; 16]| block.iter().fold(false, |has, &other| has | (other == token));
    if let Some(index) = blocks.iter().rposition(has) {
        let place = blocks[index].iter().rposition(|&other| other == token)?;
        return Some(rest.len() + 16 * index + place);
    }
    rest.iter().rposition(|&other| other == token)
}

fn common_suffix(left: &[Token], right: &[Token]) -> usize {
    left.iter().rev().zip(right.iter().rev()).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proposed(tokens: &[Token], pending: usize, most: usize) -> Option<Vec<Token>> {
        let config = Speculation { min_match: 2, ..Speculation::default() };
        propose(tokens, pending, most, &config).map(|draft| tokens[draft].to_vec())
    }

    #[test]
    fn what_followed_the_last_occurrence_is_proposed() {
        assert_eq!(proposed(&[1, 2, 3, 4, 5, 9, 1, 2], 0, 3), Some(vec![3, 4, 5]));
        assert_eq!(proposed(&[1, 2, 3, 7, 1, 2, 8, 7, 1, 2], 0, 2), Some(vec![8, 7]));
        assert_eq!(proposed(&[1, 2, 3, 4, 5], 0, 3), None);
        assert_eq!(proposed(&[2, 3, 4, 1, 2], 0, 3), None, "one token is no match");
        assert_eq!(proposed(&[], 0, 3), None);
    }

    #[test]
    fn a_pending_token_is_taken_to_be_the_next_of_the_run() {
        assert_eq!(proposed(&[1, 2, 3, 4, 5, 9, 1, 2], 1, 2), Some(vec![4, 5]));
    }

    #[test]
    fn the_longest_match_counts_before_the_last() {
        let tokens = [5, 1, 2, 3, 9, 9, 1, 2, 4, 8, 8, 5, 1, 2];
        assert_eq!(proposed(&tokens, 0, 1), Some(vec![3]));
    }

    #[test]
    fn a_short_period_is_proposed_as_long_as_wanted() {
        assert_eq!(proposed(&[7; 40], 1, 6), Some(vec![7; 6]));
    }

    #[test]
    fn the_search_ends_at_the_lookback() {
        let mut tokens = vec![1, 2, 3];
        tokens.extend(10..110);
        tokens.extend([1, 2]);
        let config = Speculation { min_match: 2, lookback: 50, ..Speculation::default() };
        assert_eq!(propose(&tokens, 0, 4, &config), None);
        let config = Speculation { lookback: 120, ..config };
        assert_eq!(propose(&tokens, 0, 1, &config), Some(2..3));
    }

    #[test]
    fn failures_make_proposals_rare_and_success_brings_them_back() {
        let mut drafting = Drafting::new(Speculation::default());
        let mut known = 100;
        let mut tried = 0;
        for _ in 0..1000 {
            match drafting.most(known) {
                0 => known += 1,
                most => {
                    tried += 1;
                    known += 1;
                    drafting.record(most, 0, known);
                }
            }
        }
        assert_eq!(tried, 7);
        drafting.record(1, 1, known);
        drafting.resumes_at = 0;
        assert_eq!(drafting.most(known), 2);
        drafting.record(2, 2, known);
        assert_eq!(drafting.most(known), 4);
    }
}
