//! Copies between the tiers, from their start until they have been waited for.

use engine_core::PageId;
use engine_core::backend::{GroupId, PageCopy, Row, SlotEvent, Tier};

use super::kv::Kv;
use super::violation::Violation;

/// The host's memory, and what copies to and from it hold.
#[derive(Debug)]
pub(super) struct Transfers {
    page_size: usize,
    /// By group.
    device_pages: Vec<u32>,
    host_pages: Vec<u32>,
    host: Kv,
    under_way: Vec<(u64, Vec<PageCopy>)>,
}

/// What a copy does with a page.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Reads,
    Fills,
}

impl Transfers {
    pub(super) fn new(page_size: usize, device_pages: &[u32], host_pages: &[u32]) -> Self {
        Self {
            page_size,
            device_pages: device_pages.to_vec(),
            host_pages: host_pages.to_vec(),
            host: Kv::new(page_size, host_pages),
            under_way: Vec::new(),
        }
    }

    pub(super) fn has_host(&self) -> bool {
        !self.host_pages.is_empty()
    }

    /// Checks the copies of a transfer, by themselves and against those under way.
    pub(super) fn start(&mut self, ticket: u64, copies: &[PageCopy]) -> Result<(), Violation> {
        self.under_way.push((ticket, Vec::new()));
        for &copy in copies {
            self.check_exists(copy.group, copy.from)?;
            self.check_exists(copy.group, copy.to)?;
            let (what, group) = ("another transfer", copy.group);
            self.check_unused(group, copy.from, &[Use::Fills], what)?;
            self.check_unused(group, copy.to, &[Use::Reads, Use::Fills], what)?;
            if let Some((_, copies)) = self.under_way.last_mut() {
                copies.push(copy);
            }
        }
        Ok(())
    }

    /// It has been waited for.
    pub(super) fn end(&mut self, ticket: u64) {
        self.under_way.retain(|(other, _)| *other != ticket);
    }

    pub(super) fn run(&mut self, device: &mut Kv, copies: &[PageCopy]) -> Result<(), Violation> {
        for copy in copies {
            let ((tier, from), (to_tier, to)) = (copy.from, copy.to);
            let (group, pages) = (copy.group, (from, to));
            let copied = match (tier, to_tier) {
                (Tier::Device, Tier::Host) => self.host.copy_from(device, group, pages),
                (Tier::Host, Tier::Device) => device.copy_from(&self.host, group, pages),
                (Tier::Device, _) => {
                    device.copy(group, from, to);
                    Ok(())
                }
                _ => {
                    self.host.copy(group, from, to);
                    Ok(())
                }
            };
            copied.map_err(|position| Violation::NothingToCopy { tier, page: from, position })?;
        }
        Ok(())
    }

    /// Pages that become free are not in use by a copy.
    pub(super) fn check_free(&self, group: GroupId, free: &[PageId]) -> Result<(), Violation> {
        let held = |page: PageId| self.uses(group, (Tier::Device, page)).next().is_some();
        match free.iter().find(|&&page| held(page)) {
            Some(&page) => Err(Violation::FreedUnderWay { page }),
            None => Ok(()),
        }
    }

    /// Copies of single pages within the device leave alone what transfers use.
    pub(super) fn check_events(&self, events: &[SlotEvent]) -> Result<(), Violation> {
        for event in events {
            if let SlotEvent::CopyPage { group, from, to } = *event {
                let what = "the copy of a page";
                self.check_unused(group, (Tier::Device, from), &[Use::Fills], what)?;
                let any = [Use::Reads, Use::Fills];
                self.check_unused(group, (Tier::Device, to), &any, what)?;
            }
        }
        Ok(())
    }

    /// A row reads nothing that is being filled, and writes nothing that is in use.
    pub(super) fn check_row(&self, row: &Row, tables: &[Vec<PageId>]) -> Result<(), Violation> {
        if self.under_way.is_empty() {
            return Ok(());
        }
        let first_written = row.position as usize / self.page_size;
        let end = (row.kv_len() as usize).div_ceil(self.page_size);
        for (group, table) in tables.iter().enumerate() {
            let group = GroupId(group as u8);
            for (place, &page) in table.iter().enumerate().take(end) {
                let page = (Tier::Device, page);
                self.check_unused(group, page, &[Use::Fills], "a row")?;
                if place >= first_written {
                    self.check_unused(group, page, &[Use::Reads], "a row that writes it")?;
                }
            }
        }
        Ok(())
    }

    fn check_exists(&self, group: GroupId, (tier, page): (Tier, PageId)) -> Result<(), Violation> {
        let pages = if tier == Tier::Device { &self.device_pages } else { &self.host_pages };
        match pages.get(usize::from(group.0)) {
            Some(&pages) if page.0 < pages => Ok(()),
            _ => Err(Violation::UnknownPage { group, page }),
        }
    }

    fn check_unused(
        &self,
        group: GroupId,
        (tier, page): (Tier, PageId),
        uses: &[Use],
        what: &'static str,
    ) -> Result<(), Violation> {
        match self.uses(group, (tier, page)).find(|found| uses.contains(found)) {
            Some(_) => Err(Violation::UnderWay { tier, page, what }),
            None => Ok(()),
        }
    }

    fn uses(&self, group: GroupId, page: (Tier, PageId)) -> impl Iterator<Item = Use> + '_ {
        let copies = self.under_way.iter().flat_map(|(_, copies)| copies);
        copies.filter(move |copy| copy.group == group).filter_map(move |copy| {
            let filled = (copy.to == page).then_some(Use::Fills);
            filled.or((copy.from == page).then_some(Use::Reads))
        })
    }
}
