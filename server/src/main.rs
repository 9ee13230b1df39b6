//! `understory serve`: a server for the protocols of OpenAI and SGLang.

fn main() {}
