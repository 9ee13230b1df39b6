//! Events in vLLM's and SGLang's format: MessagePack, `[time, [event, ..], rank]`.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use understory::Namespace;
use understory::cache::{Change, Event, PageGroup, Stored, Tier};

/// Bytes of MessagePack.
#[derive(Debug, Default)]
struct Pack(Vec<u8>);

/// A batch of changes. `name` gives a namespace's name, by which consumers tell namespaces apart.
pub(super) fn batch<'a>(
    changes: impl ExactSizeIterator<Item = &'a Change>,
    rank: u32,
    name: &dyn Fn(Namespace) -> Option<String>,
) -> Bytes {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let mut pack = Pack::default();
    pack.array(3);
    pack.float(now);
    pack.array(changes.len());
    for change in changes {
        match change {
            Change::Stored(stored) => pack.stored(stored, name),
            Change::Removed { tier, group, hashes, .. } => {
                let group = group_number(*group);
                pack.map(3 + usize::from(group.is_some()));
                pack.entry("type").text("BlockRemoved");
                pack.entry("block_hashes").numbers(hashes.iter().copied());
                pack.entry("medium").text(medium(*tier));
                if let Some(number) = group {
                    pack.entry("group_idx").number(number);
                }
            }
            // What a consumer doesn't know could be anything: it starts anew.
            _ => {
                pack.map(1);
                pack.entry("type").text("AllBlocksCleared");
            }
        }
    }
    pack.number(rank.into());
    Bytes::from(pack.0)
}

/// The changes of a dump, behind one that clears.
pub(super) fn snapshot(
    dump: &[Event],
    rank: u32,
    name: &dyn Fn(Namespace) -> Option<String>,
) -> Bytes {
    let changes: Vec<&Change> =
        [&Change::Cleared].into_iter().chain(dump.iter().map(|event| &event.change)).collect();
    batch(changes.into_iter(), rank, name)
}

/// A namespace's number in the place of a name that nobody gave.
fn number_of(namespace: Namespace) -> String {
    format!("{}:{}", namespace.tenant, namespace.salt)
}

fn medium(tier: Tier) -> &'static str {
    match tier {
        Tier::Device => "GPU",
        _ => "CPU_PINNED",
    }
}

/// Full attention is the group that consumers follow, and goes without a number.
fn group_number(group: PageGroup) -> Option<u64> {
    (group != PageGroup::Full).then_some(1)
}

impl Pack {
    fn stored(&mut self, stored: &Stored, name: &dyn Fn(Namespace) -> Option<String>) {
        let namespace = stored.namespace;
        let salt = (namespace != Namespace::default())
            .then(|| name(namespace).unwrap_or_else(|| number_of(namespace)));
        let group = group_number(stored.group);
        self.map(7 + usize::from(salt.is_some()) + 2 * usize::from(group.is_some()));
        self.entry("type").text("BlockStored");
        self.entry("block_hashes").numbers(stored.hashes.iter().copied());
        match stored.parent {
            Some(parent) => self.entry("parent_block_hash").number(parent),
            None => self.entry("parent_block_hash").nil(),
        }
        self.entry("token_ids").numbers(stored.tokens.iter().map(|&token| token.into()));
        self.entry("block_size").number(stored.page_size as u64);
        self.entry("lora_id").nil();
        self.entry("medium").text(medium(stored.tier));
        if let Some(salt) = salt {
            self.entry("cache_salt").text(&salt);
        }
        if let Some(number) = group {
            self.entry("group_idx").number(number);
            self.entry("kv_cache_spec_kind").text("sliding_window");
        }
    }

    fn entry(&mut self, key: &str) -> &mut Self {
        self.text(key);
        self
    }

    fn nil(&mut self) {
        self.0.push(0xc0);
    }

    fn float(&mut self, value: f64) {
        self.0.push(0xcb);
        self.0.extend(value.to_be_bytes());
    }

    /// In the fewest bytes, as the format asks for.
    fn number(&mut self, value: u64) {
        match (u8::try_from(value), u16::try_from(value), u32::try_from(value)) {
            (Ok(value), ..) if value < 0x80 => self.0.push(value),
            (Ok(value), ..) => self.0.extend([0xcc, value]),
            (_, Ok(value), _) => self.tagged(0xcd, &value.to_be_bytes()),
            (.., Ok(value)) => self.tagged(0xce, &value.to_be_bytes()),
            _ => self.tagged(0xcf, &value.to_be_bytes()),
        }
    }

    fn numbers(&mut self, values: impl ExactSizeIterator<Item = u64>) {
        self.array(values.len());
        values.for_each(|value| self.number(value));
    }

    fn text(&mut self, text: &str) {
        match (u8::try_from(text.len()), u16::try_from(text.len())) {
            (Ok(length), _) if length < 32 => self.0.push(0xa0 | length),
            (Ok(length), _) => self.0.extend([0xd9, length]),
            (_, Ok(length)) => self.tagged(0xda, &length.to_be_bytes()),
            _ => self.tagged(0xdb, &length32(text.len())),
        }
        self.0.extend(text.as_bytes());
    }

    fn array(&mut self, length: usize) {
        match (u8::try_from(length), u16::try_from(length)) {
            (Ok(length), _) if length < 16 => self.0.push(0x90 | length),
            (_, Ok(length)) => self.tagged(0xdc, &length.to_be_bytes()),
            _ => self.tagged(0xdd, &length32(length)),
        }
    }

    /// At most 15 entries, as events have.
    fn map(&mut self, length: usize) {
        self.0.push(0x80 | (length as u8 & 0x0f));
    }

    fn tagged(&mut self, tag: u8, bytes: &[u8]) {
        self.0.push(tag);
        self.0.extend(bytes);
    }
}

/// More than this don't fit the format, nor the memory of the pages.
fn length32(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes()
}
