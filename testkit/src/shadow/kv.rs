//! KV memory as an account: what each position of each page holds.

use std::collections::HashMap;

use engine_core::backend::{GroupId, SlotId};
use engine_core::{PageId, Token};

use super::model::Chain;
use super::violation::Violation;

/// What one position of one page holds.
#[derive(Clone, Copy, Debug)]
enum Cell {
    /// Nobody wrote it since the start, or since the memory was lost.
    Unwritten,
    /// Its page is free.
    Freed,
    Written(Entry),
}

/// One position's KV, by what it was computed from.
#[derive(Clone, Copy, Debug)]
struct Entry {
    token: Token,
    position: u32,
    /// The prefix that it was computed under, its own token included.
    chain: Chain,
    namespace: u64,
}

/// Who reads or writes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sequence {
    pub(super) slot: SlotId,
    pub(super) namespace: u64,
}

/// All pages of all groups.
#[derive(Debug)]
pub(super) struct Kv {
    page_size: usize,
    /// By group, then page and place in the page.
    groups: Vec<Vec<Cell>>,
    /// What was ever written: a prefix without its last token, and that token.
    prefixes: HashMap<Chain, (Chain, Token)>,
}

impl Kv {
    pub(super) fn new(page_size: usize, pages: &[u32]) -> Self {
        let groups =
            pages.iter().map(|&pages| vec![Cell::Unwritten; pages as usize * page_size]).collect();
        Self { page_size, groups, prefixes: HashMap::new() }
    }

    /// Reads positions `0..len` of a full group through a page table, appending their tokens, and
    /// returns the prefix that they form.
    pub(super) fn read(
        &self,
        group: GroupId,
        table: &[PageId],
        len: u32,
        reader: Sequence,
        tokens: &mut Vec<Token>,
    ) -> Result<Chain, Violation> {
        let mut chain = Chain::EMPTY;
        for position in 0..len {
            let token = self.entry(group, table, position, reader)?.token;
            chain = chain.then(token);
            self.check_chain((group, table, position, reader), chain)?;
            tokens.push(token);
        }
        Ok(chain)
    }

    /// Reads what the token at position `len` sees of a windowed group: nothing that its window
    /// has left. `tokens` are those of all positions.
    pub(super) fn read_window(
        &self,
        group: GroupId,
        table: &[PageId],
        (window, len): (u32, u32),
        reader: Sequence,
        tokens: &[Token],
    ) -> Result<(), Violation> {
        let first = len.saturating_sub(window.saturating_sub(1));
        let mut chain = Chain::of(&tokens[..first as usize]);
        for (position, &token) in (first..len).zip(&tokens[first as usize..]) {
            chain = chain.then(token);
            self.check_chain((group, table, position, reader), chain)?;
        }
        Ok(())
    }

    /// The tokens of positions `0..len`, from what was noted when the last of them was written:
    /// for a program without full groups, which nobody else could tell.
    pub(super) fn recall(
        &self,
        group: GroupId,
        table: &[PageId],
        len: u32,
        reader: Sequence,
    ) -> Result<Vec<Token>, Violation> {
        let mut tokens = Vec::new();
        let Some(last) = len.checked_sub(1) else { return Ok(tokens) };
        let mut chain = self.entry(group, table, last, reader)?.chain;
        while let Some(&(before, token)) = self.prefixes.get(&chain) {
            tokens.push(token);
            chain = before;
        }
        tokens.reverse();
        if tokens.len() != len as usize {
            let (page, _) = self.locate(group, table, last, reader.slot)?;
            return Err(Violation::Foreign { slot: reader.slot, position: last, page });
        }
        Ok(tokens)
    }

    fn entry(
        &self,
        group: GroupId,
        table: &[PageId],
        position: u32,
        reader: Sequence,
    ) -> Result<Entry, Violation> {
        let slot = reader.slot;
        let (page, cell) = self.locate(group, table, position, slot)?;
        match self.groups[usize::from(group.0)][cell] {
            Cell::Unwritten => Err(Violation::Unwritten { slot, position, page }),
            Cell::Freed => Err(Violation::Freed { slot, position, page }),
            Cell::Written(entry) => Ok(entry),
        }
    }

    fn check_chain(
        &self,
        (group, table, position, reader): (GroupId, &[PageId], u32, Sequence),
        chain: Chain,
    ) -> Result<(), Violation> {
        let entry = self.entry(group, table, position, reader)?;
        let slot = reader.slot;
        if entry.position != position || entry.chain != chain {
            let (page, _) = self.locate(group, table, position, slot)?;
            return Err(Violation::Foreign { slot, position, page });
        }
        if entry.namespace != reader.namespace {
            let (reader, writer) = (reader.namespace, entry.namespace);
            return Err(Violation::Namespace { slot, reader, writer });
        }
        Ok(())
    }

    /// Writes the KV of one position, computed under what comes `before` it. Returns that and it.
    pub(super) fn write(
        &mut self,
        group: GroupId,
        table: &[PageId],
        (token, position, before): (Token, u32, Chain),
        writer: Sequence,
    ) -> Result<Chain, Violation> {
        let chain = before.then(token);
        self.prefixes.insert(chain, (before, token));
        let (_, cell) = self.locate(group, table, position, writer.slot)?;
        let namespace = writer.namespace;
        self.groups[usize::from(group.0)][cell] =
            Cell::Written(Entry { token, position, chain, namespace });
        Ok(chain)
    }

    /// Copies a whole page. Page numbers were checked when the copy was announced.
    pub(super) fn copy(&mut self, group: GroupId, from: PageId, to: PageId) {
        let (from, to) = (from.0 as usize * self.page_size, to.0 as usize * self.page_size);
        self.groups[usize::from(group.0)].copy_within(from..from + self.page_size, to);
    }

    /// Copies a whole page from another tier. Its number is where nobody wrote, if anywhere. Page
    /// numbers were checked when the transfer was started.
    pub(super) fn copy_from(
        &mut self,
        other: &Self,
        group: GroupId,
        (from, to): (PageId, PageId),
    ) -> Result<(), usize> {
        let page = |page: PageId| {
            let start = page.0 as usize * self.page_size;
            start..start + self.page_size
        };
        let group = usize::from(group.0);
        let source = &other.groups[group][page(from)];
        if let Some(place) = source.iter().position(|cell| !matches!(cell, Cell::Written(_))) {
            return Err(place);
        }
        let target = page(to);
        self.groups[group][target].copy_from_slice(source);
        Ok(())
    }

    /// Makes a free page unreadable.
    pub(super) fn free(&mut self, group: GroupId, page: PageId) {
        let start = page.0 as usize * self.page_size;
        self.groups[usize::from(group.0)][start..start + self.page_size].fill(Cell::Freed);
    }

    /// Forgets everything.
    pub(super) fn lose(&mut self) {
        self.groups.iter_mut().for_each(|cells| cells.fill(Cell::Unwritten));
    }

    fn locate(
        &self,
        group: GroupId,
        table: &[PageId],
        position: u32,
        slot: SlotId,
    ) -> Result<(PageId, usize), Violation> {
        let entry = position as usize / self.page_size;
        let Some(&page) = table.get(entry) else {
            return Err(Violation::TableTooShort { slot, needed: entry + 1, len: table.len() });
        };
        let cell = page.0 as usize * self.page_size + position as usize % self.page_size;
        if cell >= self.groups[usize::from(group.0)].len() {
            return Err(Violation::UnknownPage { group, page });
        }
        Ok((page, cell))
    }
}
