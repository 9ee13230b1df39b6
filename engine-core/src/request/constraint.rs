//! Where a grammar takes part in sampling.

use std::fmt;

use radix_cache::Token;

/// Decides, token by token, what a sample may say next: a grammar, a schema, a fixed choice.
///
/// It is called on the engine's scheduler thread between two steps, while the device already
/// runs the forward pass that its mask is for; what it takes longer than that pass is added to
/// the step. A panic in it ends its own sample only.
pub trait TokenConstraint: fmt::Debug + Send {
    /// Sets the bit of each token that may come next. `allowed` has a bit for each token of the
    /// vocabulary, all clear: bit `t % 32` of word `t / 32`.
    ///
    /// Setting none ends the sample with an error. A constraint that is satisfied allows the
    /// model's end tokens.
    fn allow(&mut self, allowed: &mut [u32]);

    /// Takes the token that was sampled.
    fn advance(&mut self, token: Token);

    /// A constraint in the same state, for another sample of the request.
    fn duplicate(&self) -> Box<dyn TokenConstraint>;
}
