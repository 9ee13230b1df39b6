//! Grammars through an engine, on tiny models with random weights.

mod hostile;
mod identical;
mod kinds;
mod schemas;
mod support;
