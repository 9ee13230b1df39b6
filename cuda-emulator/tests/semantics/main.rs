//! What single instructions do, form by form, against values computed here in another way.

mod bits;
mod convert;
mod exact;
mod float;
mod harness;
mod integer;
mod matrix;
mod predicate;
mod warp;
