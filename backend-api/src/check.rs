//! Whether a batch keeps the rules: one definition for the core, which checks what it plans in
//! debug and test builds, and for every executor.

use radix_cache::PageId;

use crate::program::Program;
use crate::{
    AdapterId, Batch, CompileOptions, GroupId, InputToken, Limits, OutputRequest, ProgramId, Row,
    SlotEvent, SlotId, Want,
};

/// What a batch is checked against. Made once, at compile time.
#[derive(Clone, Debug)]
pub struct BatchBounds {
    limits: Limits,
    page_size: u32,
    context_length: u32,
    programs: Vec<ProgramBounds>,
}

#[derive(Clone, Debug)]
struct ProgramBounds {
    vocab_size: u32,
    /// The program's first page group among the executor's.
    first_group: usize,
    /// By group of the program.
    windows: Vec<Option<u32>>,
}

impl BatchBounds {
    /// The bounds of an executor that was compiled from `programs` with `options`.
    pub fn new(programs: &[Program], options: &CompileOptions) -> Self {
        let mut first_group = 0;
        let programs = programs.iter().map(|program| {
            let windows: Vec<_> = program.groups().iter().map(|group| group.window).collect();
            let bounds = ProgramBounds { vocab_size: program.vocab_size(), first_group, windows };
            first_group += bounds.windows.len();
            bounds
        });
        Self::of_programs(programs.collect(), options)
    }

    /// The bounds of one program with `vocab_size` ids and page groups of these windows: for test
    /// doubles that run without a program.
    pub fn of_sizes(vocab_size: u32, windows: Vec<Option<u32>>, options: &CompileOptions) -> Self {
        Self::of_programs(vec![ProgramBounds { vocab_size, first_group: 0, windows }], options)
    }

    fn of_programs(programs: Vec<ProgramBounds>, options: &CompileOptions) -> Self {
        let CompileOptions { limits, page_size, context_length, .. } = options;
        let (page_size, context_length) = (*page_size, *context_length);
        Self { limits: limits.clone(), page_size, context_length, programs }
    }

    /// The largest step.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Tokens in a page.
    pub fn page_size(&self) -> u32 {
        self.page_size
    }

    /// The executor's page group that is a program's own group `group`.
    pub fn group(&self, program: ProgramId, group: GroupId) -> GroupId {
        let first = self.programs.get(program.index()).map_or(0, |program| program.first_group);
        GroupId(first as u8 + group.0)
    }

    /// The first entry of a row's page table that the row reads: positions below it have left the
    /// window of every new token.
    pub fn first_live_entry(&self, row: &Row, window: Option<u32>) -> usize {
        let oldest = window.map_or(0, |window| (row.position + 1).saturating_sub(window));
        (oldest / self.page_size) as usize
    }

    fn check_slot(&self, slot: SlotId) -> Result<(), BatchError> {
        check_index("slot", slot.0, self.limits.slots as usize)
    }

    fn check_page(&self, group: GroupId, page: PageId) -> Result<(), BatchError> {
        match self.limits.pages.get(group.index()) {
            Some(&pages) if page.0 < pages => Ok(()),
            _ => Err(BatchError::UnknownPage { group: group.0, page: page.0 }),
        }
    }
}

fn check_index(what: &'static str, index: u32, count: usize) -> Result<(), BatchError> {
    if (index as usize) < count {
        return Ok(());
    }
    Err(BatchError::Unknown { what, index, count })
}

/// The rule that a batch breaks. Always the caller's mistake, never a request's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BatchError {
    /// A program, slot, token, page group or adapter is named that does not exist.
    #[error("{what} {index} is named, but there are {count}")]
    Unknown {
        /// What.
        what: &'static str,
        /// Its index.
        index: u32,
        /// How many there are.
        count: usize,
    },
    /// There is no row.
    #[error("there is no row")]
    Empty,
    /// More rows, tokens or output rows than the limits allow, or more decode rows than rows.
    #[error("{found} {what}, but the limit is {limit}")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there may be.
        limit: usize,
    },
    /// Fewer slots, or page tables of fewer groups, than the executor was compiled for.
    #[error("state of {found} {what} is lent, but {expected} were compiled for")]
    Slots {
        /// Slots or groups.
        what: &'static str,
        /// How many are lent.
        found: usize,
        /// How many are needed.
        expected: usize,
    },
    /// A row whose tokens or outputs don't follow those of the row before, that has no tokens, that
    /// is counted as a decode row and has more than a token and an output of it, or that goes on with
    /// a produced token of another slot.
    #[error("row {row} {reason}")]
    Row {
        /// The row; one past the last if tokens or outputs are left over.
        row: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Positions beyond the context.
    #[error("row {row} ends at position {end}, but the context has {context_length}")]
    Context {
        /// The row.
        row: usize,
        /// One past its last position.
        end: u64,
        /// The longest sequence.
        context_length: u32,
    },
    /// Two rows of one slot.
    #[error("slot {slot} has two rows")]
    SlotTwice {
        /// The slot.
        slot: u32,
    },
    /// A run of tokens that is empty or not the row's, a sample of several tokens, a sample or
    /// verification that doesn't end its row, a second one in a row, targets that don't fit the run,
    /// or an output that can't wait for a mask.
    #[error("output {output}: {reason}")]
    Output {
        /// The output.
        output: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A page table that ends before its row does.
    #[error("row {row} needs {needed} pages of group {group}, but its table has {found}")]
    TableTooShort {
        /// The row.
        row: usize,
        /// The executor's page group.
        group: u8,
        /// Entries needed.
        needed: usize,
        /// Entries there are.
        found: usize,
    },
    /// A page that doesn't exist, where a row reads or writes, or in an event.
    #[error("page {page} of group {group} does not exist")]
    UnknownPage {
        /// The executor's page group.
        group: u8,
        /// The page.
        page: u32,
    },
    /// An event announces entries that the lent table doesn't have.
    #[error("slot {slot} announces entries up to {end}, but its table has {found}")]
    Entries {
        /// The slot.
        slot: u32,
        /// One past the last entry.
        end: usize,
        /// Entries there are.
        found: usize,
    },
    /// Rows are said to share pages, but don't, or write to them.
    #[error("row {row} is said to share its first {pages} pages, but does not")]
    Shared {
        /// The row.
        row: usize,
        /// How many pages it was said to share.
        pages: u32,
    },
}

impl Batch<'_> {
    /// Checks every rule that can be seen without knowing the steps before. Reads the live part of
    /// every row's page tables, so the cost grows with the context.
    ///
    /// # Errors
    ///
    /// The first rule that the batch breaks.
    pub fn check(&self, bounds: &BatchBounds) -> Result<(), BatchError> {
        check_index("program", self.program.0.into(), bounds.programs.len())?;
        let program = &bounds.programs[self.program.index()];
        self.check_sizes(bounds)?;
        self.events.iter().try_for_each(|event| self.check_event(event, bounds))?;
        let (mut tokens, mut outputs) = (0, 0);
        for (index, row) in self.rows.iter().enumerate() {
            let broken = |reason| Err(BatchError::Row { row: index, reason });
            if row.tokens.start != tokens || row.tokens.range().end > self.tokens.len() {
                return broken("has tokens that don't follow those of the row before");
            }
            if row.outputs.start != outputs || row.outputs.range().end > self.outputs.len() {
                return broken("has outputs that don't follow those of the row before");
            }
            tokens += row.tokens.len;
            outputs += row.outputs.len;
            self.check_row(index, row, bounds)?;
            self.check_tokens(index, row, program.vocab_size)?;
            self.check_outputs(index, row, program.vocab_size)?;
            self.check_tables(index, row, program, bounds)?;
        }
        if tokens as usize != self.tokens.len() || outputs as usize != self.outputs.len() {
            let reason = "is not there, but tokens or outputs are left over";
            return Err(BatchError::Row { row: self.rows.len(), reason });
        }
        self.check_slots_differ()?;
        self.check_shared(program, bounds)
    }

    fn check_sizes(&self, bounds: &BatchBounds) -> Result<(), BatchError> {
        let limits = &bounds.limits;
        let sizes = [
            ("rows", self.rows.len(), limits.rows as usize),
            ("tokens", self.tokens.len(), limits.tokens as usize),
            ("output rows", self.output_rows(), limits.outputs as usize),
            ("decode rows", self.decode_rows as usize, self.rows.len()),
        ];
        for (what, found, limit) in sizes {
            if found > limit {
                return Err(BatchError::TooLarge { what, found, limit });
            }
        }
        let lent = [
            ("slots", self.slots.len(), limits.slots as usize),
            ("groups", self.slots.groups(), limits.pages.len()),
        ];
        for (what, found, expected) in lent {
            if found < expected {
                return Err(BatchError::Slots { what, found, expected });
            }
        }
        if self.rows.is_empty() { Err(BatchError::Empty) } else { Ok(()) }
    }

    fn check_event(&self, event: &SlotEvent, bounds: &BatchBounds) -> Result<(), BatchError> {
        match *event {
            SlotEvent::Open { slot } => {
                bounds.check_slot(slot)?;
                // No adapter can be loaded, so there is the one that stands for none.
                let AdapterId(adapter) = self.slots.state(slot).adapter;
                check_index("adapter", adapter, 1)
            }
            SlotEvent::Close { slot } => bounds.check_slot(slot),
            SlotEvent::Pages { slot, group, entries } => {
                bounds.check_slot(slot)?;
                check_index("page group", group.0.into(), bounds.limits.pages.len())?;
                let table = self.slots.pages(slot, group);
                let (end, found) = (entries.range().end, table.len());
                let pages = table.get(entries.range());
                let pages = pages.ok_or(BatchError::Entries { slot: slot.0, end, found })?;
                let mut there = pages.iter().filter(|&&page| page != PageId::NONE);
                there.try_for_each(|&page| bounds.check_page(group, page))
            }
            SlotEvent::CopyPage { group, from, to } => {
                bounds.check_page(group, from)?;
                bounds.check_page(group, to)
            }
        }
    }

    fn check_row(&self, index: usize, row: &Row, bounds: &BatchBounds) -> Result<(), BatchError> {
        if row.tokens.len == 0 {
            return Err(BatchError::Row { row: index, reason: "has no tokens" });
        }
        bounds.check_slot(row.slot)?;
        let is_decode = index < self.decode_rows as usize;
        if is_decode && (row.tokens.len, row.outputs.len) != (1, 1) {
            let reason = "is counted as a decode row, without having one token and one output";
            return Err(BatchError::Row { row: index, reason });
        }
        let end = u64::from(row.position) + u64::from(row.tokens.len);
        let context_length = bounds.context_length;
        if end > u64::from(context_length) {
            return Err(BatchError::Context { row: index, end, context_length });
        }
        Ok(())
    }

    fn check_tokens(&self, index: usize, row: &Row, vocab_size: u32) -> Result<(), BatchError> {
        for (place, token) in self.tokens[row.tokens.range()].iter().enumerate() {
            match *token {
                InputToken::Known(token) => check_index("token", token, vocab_size as usize)?,
                InputToken::Produced(slot) if slot != row.slot || place > 0 => {
                    let reason = "goes on with a token that isn't its own, or not at its start";
                    return Err(BatchError::Row { row: index, reason });
                }
                InputToken::Produced(_) => {}
            }
        }
        Ok(())
    }

    fn check_outputs(&self, index: usize, row: &Row, vocab_size: u32) -> Result<(), BatchError> {
        let mut next_tokens = 0;
        for output in row.outputs.range() {
            let OutputRequest { row: named, tokens, want, deferred } = self.outputs[output];
            let (run, own) = (tokens.range(), row.tokens.range());
            let broken = |reason| Err(BatchError::Output { output, reason });
            let is_own = named as usize == index && own.start <= run.start && run.end <= own.end;
            if !is_own || run.is_empty() {
                return broken("it names tokens that its row does not have");
            }
            match want {
                Want::Sample | Want::Verify(_) => {
                    next_tokens += 1;
                    if want == Want::Sample && run.len() != 1 {
                        return broken("a sample is of one token");
                    }
                    if run.end != own.end {
                        return broken("a sample or verification ends its row");
                    }
                    if next_tokens > 1 {
                        return broken("a row has one next token");
                    }
                }
                Want::Score { targets, .. } => {
                    let Some(targets) = self.targets.get(targets.range()) else {
                        return broken("it scores tokens that are not there");
                    };
                    if targets.len() != run.len() {
                        return broken("it scores one token for each of its run");
                    }
                    let known = |&token| check_index("token", token, vocab_size as usize);
                    targets.iter().try_for_each(known)?;
                }
                Want::Hidden | Want::Pool(_) => {}
            }
            if deferred && !matches!(want, Want::Sample | Want::Verify(_)) {
                return broken("only samples and verifications wait for masks");
            }
        }
        Ok(())
    }

    fn check_tables(
        &self,
        index: usize,
        row: &Row,
        program: &ProgramBounds,
        bounds: &BatchBounds,
    ) -> Result<(), BatchError> {
        let needed = row.kv_len().div_ceil(bounds.page_size) as usize;
        for (group, &window) in program.windows.iter().enumerate() {
            let group = GroupId((program.first_group + group) as u8);
            let table = self.pages(row, group);
            let live = table.get(bounds.first_live_entry(row, window)..needed);
            let live = live.ok_or(BatchError::TableTooShort {
                row: index,
                group: group.0,
                needed,
                found: table.len(),
            })?;
            live.iter().try_for_each(|&page| bounds.check_page(group, page))?;
        }
        Ok(())
    }

    fn check_slots_differ(&self) -> Result<(), BatchError> {
        // One bit a slot for the usual number of slots, without allocating.
        const BITS: u32 = u64::BITS;
        let mut seen = [0u64; 64];
        for (index, row) in self.rows.iter().enumerate() {
            let twice = match seen.get_mut((row.slot.0 / BITS) as usize) {
                Some(word) => {
                    let bit = 1 << (row.slot.0 % BITS);
                    std::mem::replace(word, *word | bit) & bit != 0
                }
                None => self.rows[..index].iter().any(|other| other.slot == row.slot),
            };
            if twice {
                return Err(BatchError::SlotTwice { slot: row.slot.0 });
            }
        }
        Ok(())
    }

    /// Checks the hints for cascade attention against the page tables, which are right by now.
    fn check_shared(
        &self,
        program: &ProgramBounds,
        bounds: &BatchBounds,
    ) -> Result<(), BatchError> {
        // Runs are in order and disjoint: a row whose prefix were read twice would count it twice.
        let mut next = 0;
        for shared in self.shared {
            let range = shared.rows.range();
            if range.start < next {
                return Err(BatchError::Shared { row: range.start, pages: shared.pages });
            }
            next = range.end;
            let pages = shared.pages as usize;
            for index in shared.rows.range() {
                let wrong = BatchError::Shared { row: index, pages: shared.pages };
                let end = u64::from(shared.pages) * u64::from(bounds.page_size);
                let first = self.rows.get(shared.rows.start as usize);
                let (Some(first), Some(row)) = (first, self.rows.get(index)) else {
                    return Err(wrong);
                };
                if u64::from(row.position) < end {
                    return Err(wrong);
                }
                for (group, &window) in program.windows.iter().enumerate() {
                    let group = GroupId((program.first_group + group) as u8);
                    let live = bounds.first_live_entry(row, window).min(pages)..pages;
                    let (first, row) = (self.pages(first, group), self.pages(row, group));
                    if row.len() < pages || first.get(live.clone()) != row.get(live) {
                        return Err(wrong);
                    }
                }
            }
        }
        Ok(())
    }
}
