//! The comparator: a prefix cache in the style of vLLM's.
//!
//! Every full block has a hash of its parent's hash and its own tokens; a table leads from hashes
//! to blocks; blocks that nobody uses stand in a doubly linked queue, the one to be reused next in
//! front. A hit is trusted without a look at the tokens, so a collision serves a wrong prompt:
//! that is the speed of the method at its best.

use hashbrown::HashTable;
use radix_cache::Token;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::replay::Replayed;

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Block {
    /// The hash the block is found by, if it is cached.
    hash: Option<u64>,
    references: u32,
    previous: u32,
    next: u32,
}

#[derive(Debug)]
pub(crate) struct BlockHashCache {
    block_size: usize,
    blocks: Vec<Block>,
    by_hash: HashTable<u32>,
    first_free: u32,
    last_free: u32,
    free_blocks: usize,
    hashes: Vec<u64>,
    table: Vec<u32>,
}

impl BlockHashCache {
    pub(crate) fn new(block_size: usize, blocks: usize) -> Self {
        let mut cache = Self {
            block_size,
            blocks: Vec::with_capacity(blocks),
            by_hash: HashTable::with_capacity(blocks),
            first_free: NONE,
            last_free: NONE,
            free_blocks: 0,
            hashes: Vec::new(),
            table: Vec::new(),
        };
        for block in 0..blocks as u32 {
            cache.blocks.push(Block { hash: None, references: 0, previous: NONE, next: NONE });
            cache.append_free(block);
        }
        cache
    }

    /// Hashes the prompt's full blocks, each with its parent's hash.
    pub(crate) fn hash(&mut self, prompt: &[Token]) {
        self.hashes.clear();
        let mut parent = 0;
        for block in prompt.chunks_exact(self.block_size) {
            parent = xxh3_64_with_seed(bytemuck::cast_slice(block), parent);
            self.hashes.push(parent);
        }
    }

    /// How many leading blocks are cached, of the first `limit` that were hashed.
    pub(crate) fn lookup(&mut self, limit: usize) -> usize {
        self.table.clear();
        for &hash in self.hashes.iter().take(limit) {
            let found = self.by_hash.find(hash, |&block| self.has_hash(block, hash));
            match found {
                Some(&block) => self.table.push(block),
                None => break,
            }
        }
        self.table.len()
    }

    fn has_hash(&self, block: u32, hash: u64) -> bool {
        self.blocks[block as usize].hash == Some(hash)
    }

    fn cache(&mut self, block: u32, hash: u64) {
        let known = self.by_hash.find(hash, |&other| self.has_hash(other, hash)).is_some();
        if !known {
            self.blocks[block as usize].hash = Some(hash);
            let blocks = &self.blocks;
            self.by_hash.insert_unique(hash, block, |&other| {
                blocks[other as usize].hash.unwrap_or_default()
            });
        }
    }

    fn forget(&mut self, block: u32) {
        if let Some(hash) = self.blocks[block as usize].hash.take()
            && let Ok(entry) = self.by_hash.find_entry(hash, |&other| other == block)
        {
            entry.remove();
        }
    }

    fn append_free(&mut self, block: u32) {
        self.blocks[block as usize].previous = self.last_free;
        self.blocks[block as usize].next = NONE;
        match self.blocks.get_mut(self.last_free as usize) {
            Some(last) => last.next = block,
            None => self.first_free = block,
        }
        self.last_free = block;
        self.free_blocks += 1;
    }

    fn remove_free(&mut self, block: u32) {
        let Block { previous, next, .. } = self.blocks[block as usize];
        match self.blocks.get_mut(previous as usize) {
            Some(before) => before.next = next,
            None => self.first_free = next,
        }
        match self.blocks.get_mut(next as usize) {
            Some(after) => after.previous = previous,
            None => self.last_free = previous,
        }
        self.free_blocks -= 1;
    }
}

impl Replayed for BlockHashCache {
    /// Looks the prompt up, allocates, caches, frees.
    fn serve(&mut self, prompt: &[Token]) -> usize {
        self.hash(prompt);
        let matched = self.lookup(prompt.len().saturating_sub(1) / self.block_size);
        for index in 0..matched {
            let block = self.table[index];
            if self.blocks[block as usize].references == 0 {
                self.remove_free(block);
            }
            self.blocks[block as usize].references += 1;
        }
        let missing = self.hashes.len() - matched;
        if missing <= self.free_blocks {
            for index in matched..self.hashes.len() {
                let block = self.first_free;
                self.remove_free(block);
                self.forget(block);
                self.blocks[block as usize].references = 1;
                self.cache(block, self.hashes[index]);
                self.table.push(block);
            }
        }
        // The end of the prompt is freed first, so that it is reused first.
        while let Some(block) = self.table.pop() {
            self.blocks[block as usize].references -= 1;
            if self.blocks[block as usize].references == 0 {
                self.append_free(block);
            }
        }
        matched
    }
}
