//! When two backends agree, that round differently.
//!
//! Log probabilities must be equal within a stated noise at each step. Tokens must be equal too,
//! unless the best two are so close that the noise of both can have decided. From there on the
//! answers have different prefixes, so the rest of that answer is not compared. Such near-ties must
//! be rare, or the comparison would say little.

use serde::Deserialize;
use understory::Token;

/// An answer, as a line of the batch file's output has it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Answer {
    pub(crate) token_ids: Vec<Token>,
    pub(crate) logprobs: Vec<Logprob>,
}

/// A token, and the likeliest at its place, best first.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Logprob {
    #[serde(default)]
    pub(crate) top: Vec<TopToken>,
}

/// One of the likeliest tokens.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct TopToken {
    pub(crate) token_id: Token,
    pub(crate) logprob: f32,
}

/// What a comparison came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Agreement {
    /// Tokens that were compared, over all answers.
    pub(crate) tokens: usize,
    /// Answers that part at a near-tie.
    pub(crate) near_ties: usize,
    /// Of a log probability.
    pub(crate) largest_difference: f32,
}

/// Compares answers to the same greedy requests. At most one answer in eight may end at a near-tie.
///
/// # Errors
///
/// Where they disagree.
pub(crate) fn compare(
    expected: &[Answer],
    found: &[Answer],
    noise: f32,
) -> Result<Agreement, String> {
    if expected.len() != found.len() {
        return Err(format!("{} answers instead of {}", found.len(), expected.len()));
    }
    let mut agreement = Agreement::default();
    for (index, (expected, found)) in expected.iter().zip(found).enumerate() {
        compare_answers(expected, found, noise, &mut agreement)
            .map_err(|difference| format!("answer {index}, {difference}"))?;
    }
    if agreement.near_ties * 8 > expected.len() {
        return Err(format!("near-ties end {} of {} answers", agreement.near_ties, expected.len()));
    }
    Ok(agreement)
}

fn compare_answers(
    expected: &Answer,
    found: &Answer,
    noise: f32,
    agreement: &mut Agreement,
) -> Result<(), String> {
    let logprobs = expected.logprobs.iter().zip(&found.logprobs);
    let tokens = expected.token_ids.iter().zip(&found.token_ids);
    for (step, ((expected, found), (&expected_token, &found_token))) in
        logprobs.zip(tokens).enumerate()
    {
        let difference = largest_difference(&expected.top, &found.top)
            .ok_or_else(|| format!("step {step}: other tokens are likely"))?;
        agreement.tokens += 1;
        agreement.largest_difference = agreement.largest_difference.max(difference);
        if difference > noise {
            return Err(format!("step {step}: log probabilities differ by {difference:e}"));
        }
        if expected_token != found_token {
            let logprob = |token| find(&expected.top, token).unwrap_or(f32::NEG_INFINITY);
            let margin = logprob(expected_token) - logprob(found_token);
            if margin > 2.0 * noise {
                return Err(format!(
                    "step {step}: token {found_token} instead of {expected_token}, which is ahead \
                     by {margin:e}"
                ));
            }
            agreement.near_ties += 1;
            return Ok(());
        }
    }
    if expected.token_ids.len() != found.token_ids.len() {
        return Err(format!(
            "{} tokens instead of {}",
            found.token_ids.len(),
            expected.token_ids.len()
        ));
    }
    Ok(())
}

/// The largest difference over the tokens that are in both lists; `None` if the lists are not of
/// the same tokens. A near-tie at the end of the lists may put one token there instead of another.
fn largest_difference(expected: &[TopToken], found: &[TopToken]) -> Option<f32> {
    let pairs = expected.iter().filter_map(|expected| {
        let found = find(found, expected.token_id)?;
        Some((expected.logprob - found).abs())
    });
    let differences: Vec<f32> = pairs.collect();
    let is_same = !found.is_empty()
        && expected.len() == found.len()
        && differences.len() + 1 >= expected.len();
    is_same.then(|| differences.into_iter().fold(0.0, f32::max))
}

fn find(top: &[TopToken], token: Token) -> Option<f32> {
    top.iter().find(|top| top.token_id == token).map(|top| top.logprob)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps whose likeliest tokens are 5 and 9, with these log probabilities; greedy.
    fn answer(steps: &[(f32, f32)]) -> Answer {
        let top = |&(five, nine): &(f32, f32)| {
            let mut top = vec![
                TopToken { token_id: 5, logprob: five },
                TopToken { token_id: 9, logprob: nine },
            ];
            top.sort_by(|a, b| b.logprob.total_cmp(&a.logprob));
            Logprob { top }
        };
        let logprobs: Vec<Logprob> = steps.iter().map(top).collect();
        Answer { token_ids: logprobs.iter().map(|step| step.top[0].token_id).collect(), logprobs }
    }

    #[test]
    fn near_ties_are_excused_and_end_their_answer() {
        let mut expected = vec![answer(&[(-0.5, -1.0)]); 7];
        let mut found = expected.clone();
        expected.push(answer(&[(-0.7, -0.7001), (-0.1, -5.0)]));
        found.push(answer(&[(-0.7001, -0.7), (-5.0, -0.1)]));
        let agreement = compare(&expected, &found, 1e-3).unwrap();
        assert_eq!((agreement.tokens, agreement.near_ties), (8, 1));
        assert!((agreement.largest_difference - 1e-4).abs() < 1e-6);
        let error = compare(&expected[1..], &found[1..], 1e-3).unwrap_err();
        assert!(error.contains("near-ties"), "{error}");
    }

    #[test]
    fn other_differences_are_found() {
        let good = answer(&[(-0.5, -1.0), (-1.0, -0.5)]);
        let mut cut = good.clone();
        cut.token_ids.pop();
        cut.logprobs.pop();
        let mut other_token = good.clone();
        other_token.token_ids[1] = 5;
        let mut other_list = good.clone();
        other_list.logprobs[0].top[0].token_id = 7;
        other_list.logprobs[0].top[1].token_id = 8;
        let mut silent = good.clone();
        silent.logprobs[0].top.clear();
        let noisy = answer(&[(-0.5, -1.01), (-1.0, -0.5)]);
        let good = std::slice::from_ref(&good);
        for wrong in [cut, other_token, other_list, silent, noisy] {
            compare(good, &[wrong], 1e-3).unwrap_err();
        }
        compare(good, &[], 1e-3).unwrap_err();
        compare(good, good, 0.0).unwrap();
    }
}
