//! Divides attention between blocks of threads, on the host, before each step.
//!
//! A launch is as fast as its slowest block. Rows are of unequal length, so the plan lays the KV of all rows end
//! to end and gives each block an equal share (Stream-K, Osama et al., 2023); a share that ends within a row cuts
//! the row into [`Piece`]s. Rows that share a prefix read the prefix once: a [`Tile`] on tensor cores computes the shared part for
//! all of them, and each row's own part is a [`Piece`]. [`Whole`] says which parts make a row.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

/// The part of an item that is no part: the block writes the row's output itself.
pub const WHOLE: i32 = -1;
/// Positions that a piece has at least, where a row is divided: the part that it writes and the merge reads
/// then is at most a hundredth of the KV.
pub const LEAST_PIECE: u32 = 512;

/// Positions `begin..end` of a row, for `attention_decode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Piece {
    /// Row of queries and outputs.
    pub row: i32,
    /// Whose page table.
    pub slot: i32,
    /// First position.
    pub begin: i32,
    /// Position after the last.
    pub end: i32,
    /// Part to write, or [`WHOLE`].
    pub part: i32,
}

/// Work of a block of `attention_decode`, for each KV head: some pieces, one after another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Share {
    /// First of them in [`Plan::pieces`].
    pub first: i32,
    /// How many.
    pub count: i32,
}

/// Work of a block of `attention_append`, for each KV head: some tokens of a row, or the rows that share a prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Tile {
    /// Whose page table.
    pub slot: i32,
    /// First token of the batch, or first entry of [`Plan::token_list`] in a tile that writes parts.
    pub first: i32,
    /// How many.
    pub tokens: i32,
    /// Absolute position of the first token.
    pub position: i32,
    /// First position of KV.
    pub begin: i32,
    /// Position after the last.
    pub end: i32,
    /// First part to write, one for each token, or [`WHOLE`].
    pub part: i32,
}

/// Work of a block of `attention_merge`, for each head: the parts of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Whole {
    /// Row of outputs.
    pub row: i32,
    /// First of its parts in [`Plan::part_list`].
    pub first: i32,
    /// How many.
    pub count: i32,
}

/// A row with one new token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeRow {
    /// Whose page table.
    pub slot: u32,
    /// Positions of KV, the new one included.
    pub kv_len: u32,
}

/// A row with several new tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendRow {
    /// Whose page table.
    pub slot: u32,
    /// Its first token in the batch.
    pub first: u32,
    /// New tokens.
    pub tokens: u32,
    /// Absolute position of the first.
    pub position: u32,
}

/// Consecutive decode rows whose first positions are the same pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedRun {
    /// Which rows.
    pub rows: Range<u32>,
    /// How many positions they share.
    pub positions: u32,
}

/// What attention is planned for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// KV heads.
    pub kv_heads: u32,
    /// Query heads of each.
    pub group: u32,
    /// Positions that a token sees; `None` is all.
    pub window: Option<u32>,
    /// Blocks that the device runs at once.
    pub blocks: u32,
}

/// Rows of a tile: the height of what a block multiplies at once.
const TILE_ROWS: u32 = 64;
/// Keys of a tile.
const TILE_KEYS: u32 = 32;

/// What the kernels of a step are told. Kept and refilled, so that a step in steady state allocates nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// For `attention_decode`.
    pub pieces: Vec<Piece>,
    /// For `attention_decode`, by block.
    pub shares: Vec<Share>,
    /// For `attention_append`: rows with several new tokens.
    pub tiles: Vec<Tile>,
    /// For `attention_append`: shared prefixes.
    pub shared_tiles: Vec<Tile>,
    /// Rows of the shared tiles.
    pub token_list: Vec<i32>,
    /// For `attention_merge`.
    pub wholes: Vec<Whole>,
    /// Parts of the wholes.
    pub part_list: Vec<i32>,
    /// How many parts there are.
    pub parts: u32,
    /// By decode row: what is left of it behind a shared prefix, and its parts of the prefix.
    own: Vec<Own>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Own {
    begin: u32,
    end: u32,
    shared_part: Option<(u32, u32)>,
}

impl Plan {
    /// Plans a step. Shared runs must not overlap; a run of one row, one that a window hides, or one that no
    /// row reaches beyond is left out.
    pub fn fill(
        &mut self,
        shape: &Shape,
        decode: &[DecodeRow],
        shared: &[SharedRun],
        append: &[AppendRow],
    ) {
        self.pieces.clear();
        self.shares.clear();
        self.tiles.clear();
        self.shared_tiles.clear();
        self.token_list.clear();
        self.wholes.clear();
        self.part_list.clear();
        self.parts = 0;
        self.own.clear();
        self.own.extend(decode.iter().map(|row| {
            let begin = shape.window.map_or(0, |window| row.kv_len.saturating_sub(window));
            Own { begin, end: row.kv_len, shared_part: None }
        }));
        for run in shared {
            self.share(shape, decode, run);
        }
        self.divide(shape, decode);
        for row in append {
            self.append(shape, row);
        }
    }

    /// Positions of the block of `attention_decode` that has most, over the mean: 1 is a perfect balance.
    pub fn imbalance(&self) -> f64 {
        let work = |share: &Share| {
            let pieces = &self.pieces[share.first as usize..(share.first + share.count) as usize];
            pieces.iter().map(|piece| f64::from(piece.end - piece.begin)).sum::<f64>()
        };
        let (sum, most) = self
            .shares
            .iter()
            .map(work)
            .fold((0.0, 0.0_f64), |(sum, most), work| (sum + work, most.max(work)));
        if sum == 0.0 { 1.0 } else { most * self.shares.len() as f64 / sum }
    }

    fn share(&mut self, shape: &Shape, decode: &[DecodeRow], run: &SharedRun) {
        let rows = run.rows.start as usize..run.rows.end as usize;
        let Some(members) = decode.get(rows.clone()) else { return };
        // The new token of a row is never shared.
        let reach = members.iter().map(|row| row.kv_len.saturating_sub(1)).min().unwrap_or(0);
        let positions = run.positions.min(reach);
        if shape.window.is_some() || members.len() < 2 || positions < TILE_KEYS {
            return;
        }
        let per_tile = (TILE_ROWS / shape.group).max(1) as usize;
        // Each tile reads the prefix again, so a long prefix is divided, not the rows, until the device is busy.
        let row_tiles = members.len().div_ceil(per_tile) as u32;
        let wanted = (shape.blocks / (row_tiles * shape.kv_heads).max(1)).max(1);
        let chunk = positions.div_ceil(wanted).max(LEAST_PIECE).next_multiple_of(TILE_KEYS);
        let chunks = positions.div_ceil(chunk);
        for (tile, members) in members.chunks(per_tile).enumerate() {
            let first_row = rows.start + tile * per_tile;
            let first = self.token_list.len();
            self.token_list.extend((first_row..first_row + members.len()).map(|row| row as i32));
            for chunk_index in 0..chunks {
                self.shared_tiles.push(Tile {
                    slot: members[0].slot as i32,
                    first: first as i32,
                    tokens: members.len() as i32,
                    position: 0,
                    begin: (chunk_index * chunk) as i32,
                    end: ((chunk_index + 1) * chunk).min(positions) as i32,
                    part: self.parts as i32,
                });
                for (row, own) in
                    self.own[first_row..first_row + members.len()].iter_mut().enumerate()
                {
                    own.begin = positions;
                    // The parts of a row lie a tile's rows apart.
                    own.shared_part.get_or_insert((self.parts + row as u32, members.len() as u32));
                }
                self.parts += members.len() as u32;
            }
            for row in first_row..first_row + members.len() {
                let Some((part, stride)) = self.own[row].shared_part else { continue };
                let first = self.part_list.len();
                self.part_list.extend((0..chunks).map(|index| (part + index * stride) as i32));
                self.wholes.push(Whole {
                    row: row as i32,
                    first: first as i32,
                    count: chunks as i32,
                });
            }
        }
    }

    /// Deals out what each row has of its own.
    fn divide(&mut self, shape: &Shape, decode: &[DecodeRow]) {
        // Rows that share a prefix have their entry in `wholes`; parts of their own follow the shared ones there.
        let shared = std::mem::take(&mut self.wholes);
        let lists = std::mem::take(&mut self.part_list);
        let mut shared = shared.iter().peekable();
        let mut dealer = Dealer::new(shape, &self.own);
        for (row, own) in self.own.iter().enumerate() {
            let first_piece = self.pieces.len();
            let mut begin = own.begin;
            while begin < own.end {
                let (length, opens_block) = dealer.deal(own.end - begin);
                if opens_block {
                    self.shares.push(Share { first: self.pieces.len() as i32, count: 0 });
                }
                if let Some(share) = self.shares.last_mut() {
                    share.count += 1;
                }
                self.pieces.push(Piece {
                    row: row as i32,
                    slot: decode[row].slot as i32,
                    begin: begin as i32,
                    end: (begin + length) as i32,
                    part: WHOLE,
                });
                begin += length;
            }
            let before = shared.next_if(|whole| whole.row as usize == row);
            let pieces = &mut self.pieces[first_piece..];
            if pieces.len() == 1 && before.is_none() {
                continue;
            }
            let first = self.part_list.len();
            if let Some(before) = before {
                let range = before.first as usize..(before.first + before.count) as usize;
                self.part_list.extend_from_slice(&lists[range]);
            }
            for piece in pieces {
                piece.part = self.parts as i32;
                self.part_list.push(piece.part);
                self.parts += 1;
            }
            let count = (self.part_list.len() - first) as i32;
            self.wholes.push(Whole { row: row as i32, first: first as i32, count });
        }
    }

    fn append(&mut self, shape: &Shape, row: &AppendRow) {
        let per_tile = (TILE_ROWS / shape.group).max(1);
        for start in (0..row.tokens).step_by(per_tile as usize) {
            let tokens = per_tile.min(row.tokens - start);
            let position = row.position + start;
            let oldest = shape.window.map_or(0, |window| (position + 1).saturating_sub(window));
            self.tiles.push(Tile {
                slot: row.slot as i32,
                first: (row.first + start) as i32,
                tokens: tokens as i32,
                position: position as i32,
                begin: oldest as i32,
                end: (position + tokens) as i32,
                part: WHOLE,
            });
        }
        // Long tiles first: the last blocks to start are short.
        self.tiles.sort_unstable_by_key(|tile| std::cmp::Reverse(tile.end - tile.begin));
    }
}

/// Deals positions to blocks.
struct Dealer {
    /// Positions not dealt yet.
    left: u64,
    /// Blocks not opened yet.
    blocks: u64,
    /// Positions that the open block still takes.
    room: u64,
    /// Positions that it took when it was opened.
    aim: u64,
    /// How far a share may miss its aim, so that a row is not cut for a few positions.
    slack: u64,
}

impl Dealer {
    fn new(shape: &Shape, rows: &[Own]) -> Self {
        let left = rows.iter().map(|own| u64::from(own.end - own.begin)).sum();
        // No more blocks than there are pieces of the least length: shares of those that there are stay equal.
        let pieces = rows.iter().map(|own| u64::from((own.end - own.begin) / LEAST_PIECE).max(1));
        let blocks = u64::from(shape.blocks / shape.kv_heads.max(1)).min(pieces.sum()).max(1);
        Self { left, blocks, room: 0, aim: 0, slack: 0 }
    }

    /// How many of a row's `wanted` positions come next, and whether a block opens with them.
    fn deal(&mut self, wanted: u32) -> (u32, bool) {
        let wanted = u64::from(wanted);
        // A row is not cut for the last few positions of a block.
        let least = u64::from(LEAST_PIECE);
        // Nor a short row at all, where blocks have less than the least piece: there are blocks enough.
        let is_short = wanted <= least && self.aim < least && self.blocks > 0;
        let few = if is_short { self.room } else { self.slack.max(least / 8) };
        let opens = self.room == 0 || (wanted > self.room + self.slack && self.room <= few);
        if opens {
            self.room = self.left.div_ceil(self.blocks.max(1)).max(1);
            self.aim = self.room;
            self.slack = self.room / 10;
            self.blocks = self.blocks.saturating_sub(1);
        }
        // A piece shorter than this is not worth its merge.
        let cut = if opens { self.room.max(least) } else { self.room };
        let taken = if wanted <= cut + self.slack { wanted } else { cut };
        self.room = self.room.saturating_sub(taken);
        self.left -= taken;
        // No more than `wanted`.
        (taken as u32, opens)
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
