//! The hashes by which followers know pages.
//!
//! A page's hash is `XXH3_64(tokens, seed)`: the page's tokens as little-endian 32-bit numbers,
//! and as seed the hash of the page before it, or for the first page of a prompt
//! [`Namespace::seed`]. Equal hashes thus stand for equal prefixes, as far as 64 bits can tell. The
//! algorithm is part of the interface and will not change within a major version. The cache itself
//! never relies on it.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::types::{Namespace, Token};

impl Namespace {
    /// The seed of the [hash](page_hash) of a prompt's first page: the tenant's number without a
    /// salt, `XXH3_64(salt as 8 little-endian bytes, tenant)` with one.
    #[must_use]
    pub fn seed(self) -> u64 {
        match self.salt {
            0 => self.tenant,
            salt => xxh3_64_with_seed(&salt.to_le_bytes(), self.tenant),
        }
    }
}

/// The hash of a page that follows a prefix with the hash `seed`, or that starts a prompt of a
/// namespace with this [`seed`](Namespace::seed).
///
/// ```
/// let prompt = radix_cache::page_hash(radix_cache::Namespace::tenant(7).seed(), &[1, 2, 3, 4]);
/// let longer = radix_cache::page_hash(prompt, &[5, 6, 7, 8]);
/// assert_ne!(prompt, longer);
/// ```
#[must_use]
pub fn page_hash(seed: u64, tokens: &[Token]) -> u64 {
    // The largest page is 512 tokens; longer input is a caller's, and takes the slow way.
    let mut buffer = [0; 512 * size_of::<Token>()];
    let Some(bytes) = buffer.get_mut(..size_of_val(tokens)) else {
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        return xxh3_64_with_seed(&bytes, seed);
    };
    for (bytes, token) in bytes.chunks_exact_mut(size_of::<Token>()).zip(tokens) {
        bytes.copy_from_slice(&token.to_le_bytes());
    }
    xxh3_64_with_seed(bytes, seed)
}
