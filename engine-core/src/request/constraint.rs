//! Where a grammar takes part in sampling.

use std::fmt;

use radix_cache::Token;

/// Decides, token by token, what a sample may say next: a grammar, a schema, a fixed choice.
///
/// The engine calls it between two steps, on its scheduler thread or on a thread of its own for
/// such calls, while the device already runs the forward pass that the mask is for; what a call
/// takes longer than that pass is added to the step. A panic in it ends its own sample only.
pub trait TokenConstraint: fmt::Debug + Send {
    /// Sets the bit of each token that may come next. `allowed` has a bit for each token of the
    /// vocabulary, all clear: bit `t % 32` of word `t / 32`.
    ///
    /// Setting none ends the sample with an error. A constraint that is satisfied allows the
    /// model's end tokens.
    fn allow(&mut self, allowed: &mut [u32]);

    /// Takes the token that comes next. Told before the next mask is asked for, not at once.
    fn advance(&mut self, token: Token);

    /// Takes back the last `tokens` tokens that it was advanced by: they were proposals, to know
    /// the masks behind them.
    fn rollback(&mut self, tokens: usize);

    /// Appends the tokens that must come next, one after another, as long as there is no choice:
    /// they are not sampled one by one, but computed together like a prompt. None of them has log
    /// probabilities. [`advance`](Self::advance) is called with each of them.
    ///
    /// Tokens that can't be taken (the sample ends before, or counts penalties) are asked for by
    /// [`allow`](Self::allow) again. By default nothing is forced.
    fn forced(&mut self, tokens: &mut Vec<Token>) {
        let _ = tokens;
    }

    /// Why nothing is allowed, for the error that ends the sample then. By default nothing more is
    /// known.
    fn problem(&self) -> Option<String> {
        None
    }

    /// A constraint in the same state, for another sample of the request.
    fn duplicate(&self) -> Box<dyn TokenConstraint>;
}
