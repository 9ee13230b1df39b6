//! What single instructions do, form by form, against values computed here in another way.

mod bits;
mod block;
mod convert;
mod coverage;
mod exact;
mod float;
mod harness;
mod integer;
mod matrix;
mod mbarrier;
mod predicate;
mod warp;
mod wgmma;
mod wmma;
