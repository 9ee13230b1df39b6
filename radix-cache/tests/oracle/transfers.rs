//! Operations of the second tier, and memories that show whether the right bytes were copied.

use std::collections::HashMap;

use radix_cache::{CacheError, Namespace, PageId, Tier, Token, Transfer, TransferId, WritePolicy};

use crate::choices::Choices;
use crate::drive::{Driver, Outcome, same, text};
use crate::model::Hold;

/// Transfers under way, the naive view of them, and the host's memory.
#[derive(Debug, Default)]
pub(crate) struct Transfers {
    under_way: Vec<UnderWay>,
    ended: Vec<TransferId>,
    memory: HashMap<PageId, (Namespace, Vec<Token>)>,
}

#[derive(Debug)]
struct UnderWay {
    transfer: Transfer,
    hold: Hold,
    /// Where the range starts, in tokens.
    from: usize,
    /// Whether the last page is to leave the device.
    demotes: bool,
}

impl Transfers {
    pub(crate) fn holds(&self) -> impl Iterator<Item = &Hold> {
        self.under_way.iter().map(|it| &it.hold)
    }

    /// Pages of the device that are being loaded into.
    pub(crate) fn loading_pages(&self) -> usize {
        let loads = self.under_way.iter().map(|it| &it.transfer);
        let loads = loads.filter(|transfer| transfer.to == Tier::Device);
        loads.map(|transfer| transfer.device.len()).sum()
    }

    /// Everything is lost. Returns the pages that were being loaded into.
    pub(crate) fn reset(&mut self) -> Vec<PageId> {
        let mut pages = Vec::new();
        for gone in self.under_way.drain(..) {
            self.ended.push(gone.transfer.id);
            if gone.transfer.to == Tier::Device {
                pages.extend(gone.transfer.device);
            }
        }
        pages
    }
}

impl Driver {
    pub(crate) fn step_transfers(&mut self, choices: &mut dyn Choices) -> Outcome {
        match choices.below(12) {
            0..3 => self.save(choices),
            3..5 => self.demote(),
            5..8 => self.load(choices),
            8..11 => self.confirm_or_fail(choices),
            _ => self.misuse_transfers(choices),
        }
    }

    fn save(&mut self, choices: &mut dyn Choices) -> Outcome {
        let Some(index) = self.pick(choices) else {
            return Ok(());
        };
        let mut hold = self.holds[index].clone();
        let ordered = self.cache.save(self.locks[index]).map_err(text)?;
        let hits = match self.setup.host {
            Some((_, WritePolicy::Through)) => 0,
            Some((_, WritePolicy::ThroughAfterHits(hits))) => hits,
            _ => {
                same!(ordered, None, "a save under write-back");
                return Ok(());
            }
        };
        let path = self.model.range(&hold, 0);
        let often = path.iter().take_while(|&&index| self.model.entries[index].hits >= hits);
        hold.prefix.truncate(often.count() * self.setup.page_size);
        self.expect_copy(ordered, Hold::new(hold.namespace, &hold.prefix), false)
    }

    /// One page at a time, so that the naive cache need not know of runs.
    fn demote(&mut self) -> Outcome {
        let (mut freed, mut ordered) = (Vec::new(), Vec::new());
        let made = self.cache.demote(1, &mut freed, &mut ordered).map_err(text)?;
        let holds = self.all_holds();
        let Some(first) = self.model.first_to_go(&holds) else {
            same!((made, ordered.len()), (0, 0), "demotion of nothing");
            return self.take_back(freed, Vec::new(), "demoted");
        };
        if self.model.entries[first].host {
            same!((made, ordered.len()), (1, 0), "demotion of what is on the host");
            let expected = self.model.evict(1, &holds);
            return self.take_back(freed, expected, "demoted");
        }
        same!((made, freed.len()), (ordered.len(), 0), "pages that a copy will free");
        let entry = &self.model.entries[first];
        let hold = Hold::new(entry.namespace, &entry.prefix);
        self.expect_copy(ordered.pop(), hold, true)
    }

    /// Compares an ordered copy to the host with what the naive cache would copy.
    fn expect_copy(&mut self, ordered: Option<Transfer>, hold: Hold, demotes: bool) -> Outcome {
        let missing = self.model.missing_on_host(&hold);
        let pages: Vec<Option<PageId>> =
            missing.iter().map(|&index| self.model.entries[index].page).collect();
        let from = hold.prefix.len() - pages.len() * self.setup.page_size;
        let mut holds = self.all_holds();
        holds.push(hold.clone());
        let possible =
            !pages.is_empty() && self.model.make_host_room(pages.len(), self.host_free(), &holds);
        let Some(transfer) = ordered else {
            same!(false, possible, "an order that was not given");
            return Ok(());
        };
        same!(true, possible, "an order that was given");
        same!(transfer.to, Tier::Host, "the tier that is written");
        let device: Vec<_> = transfer.device.iter().copied().map(Some).collect();
        same!(&device, &pages, "pages to copy to the host");
        same!(transfer.host.len(), pages.len(), "pages of the host");
        self.set_out(UnderWay { transfer, hold, from, demotes });
        Ok(())
    }

    fn load(&mut self, choices: &mut dyn Choices) -> Outcome {
        let (mut namespace, mut tokens) = self.prompt(choices);
        let entries = self.model.entries.iter();
        let on_host: Vec<_> = entries.filter(|entry| entry.page.is_none()).collect();
        if !on_host.is_empty() && !choices.one_in(4) {
            let entry = on_host[choices.below(on_host.len())];
            (namespace, tokens) = (entry.namespace, entry.prefix.clone());
        }
        let own = choices.below(5).min(self.free.len());
        let own = self.free.split_off(self.free.len() - own);
        let on_device = self.model.matching(namespace, &tokens).len() * self.setup.page_size;
        let count = self.model.loadable(namespace, &tokens).min(own.len());
        let ordered = self.cache.load(namespace, &tokens, &own).map_err(text)?;
        let Some(transfer) = ordered else {
            same!(0, count, "a load that was not ordered");
            self.free.extend(own);
            return Ok(());
        };
        same!(&transfer.device[..], &own[..count], "pages to load into");
        self.free.extend_from_slice(&own[count..]);
        let end = on_device + count * self.setup.page_size;
        for (number, page) in transfer.host.iter().enumerate() {
            let end = on_device + (number + 1) * self.setup.page_size;
            let right = (namespace, tokens[..end].to_vec());
            same!(self.transfers.memory.get(page), Some(&right), "KV that is loaded");
        }
        let hold = Hold::new(namespace, &tokens[..end]);
        self.set_out(UnderWay { transfer, hold, from: on_device, demotes: false });
        Ok(())
    }

    fn confirm_or_fail(&mut self, choices: &mut dyn Choices) -> Outcome {
        if self.transfers.under_way.is_empty() {
            return Ok(());
        }
        let index = choices.below(self.transfers.under_way.len());
        let done = self.transfers.under_way.swap_remove(index);
        let (id, to_host) = (done.transfer.id, done.transfer.to == Tier::Host);
        self.transfers.ended.push(id);
        let range = self.model.range(&done.hold, done.from);
        for &index in &range {
            self.model.entries[index].moving = false;
        }
        let (mut freed, mut expected) = (Vec::new(), Vec::new());
        if choices.one_in(4) {
            self.cache.fail(id, &mut freed).map_err(text)?;
            if !to_host {
                expected = done.transfer.device;
            }
            return self.take_back(freed, expected, "pages of a load that failed");
        }
        for (pair, &index) in done.transfer.device.iter().zip(&done.transfer.host).zip(&range) {
            let (device, host) = pair;
            let entry = &mut self.model.entries[index];
            let content = (entry.namespace, entry.prefix.clone());
            if to_host {
                same!(self.memory.get(device), Some(&content), "KV that was copied");
                self.transfers.memory.insert(*host, content);
                entry.host = true;
            } else {
                same!(self.transfers.memory.get(host), Some(&content), "KV that was loaded");
                self.memory.insert(*device, content);
                match entry.page {
                    Some(_) => expected.push(*device),
                    None => entry.page = Some(*device),
                }
            }
        }
        if let Some(&last) = range.last().filter(|_| done.demotes)
            && self.model.is_idle_on_device(last, &self.all_holds())
        {
            expected.extend(self.model.entries[last].page.take());
        }
        self.cache.confirm(id, &mut freed).map_err(text)?;
        self.take_back(freed, expected, "pages of a transfer")
    }

    fn misuse_transfers(&mut self, choices: &mut dyn Choices) -> Outcome {
        if self.transfers.ended.is_empty() {
            return Ok(());
        }
        let transfer = self.transfers.ended[choices.below(self.transfers.ended.len())];
        let unknown = Err(CacheError::UnknownTransfer { transfer });
        same!(
            self.cache.confirm(transfer, &mut Vec::new()),
            unknown.clone(),
            "second confirmation"
        );
        same!(self.cache.fail(transfer, &mut Vec::new()), unknown, "failure after the end");
        Ok(())
    }

    fn set_out(&mut self, under_way: UnderWay) {
        for index in self.model.range(&under_way.hold, under_way.from) {
            self.model.entries[index].moving = true;
        }
        self.transfers.under_way.push(under_way);
    }

    /// Pages of the host that hold nothing and wait for nothing.
    fn host_free(&self) -> usize {
        let stored = self.model.entries.iter().filter(|entry| entry.host).count();
        let transfers = self.transfers.under_way.iter().map(|it| &it.transfer);
        let coming = transfers.filter(|transfer| transfer.to == Tier::Host);
        crate::drive::HOST_POOL - stored - coming.map(|it| it.host.len()).sum::<usize>()
    }
}
