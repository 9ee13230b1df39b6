//! How many pieces the accesses of a warp fall into.

/// Distinct 32-byte sectors of device memory that a warp's access touches.
#[derive(Debug)]
pub(crate) struct Sectors {
    sectors: [u64; 64],
    count: usize,
}

impl Default for Sectors {
    fn default() -> Self {
        Self { sectors: [0; 64], count: 0 }
    }
}

impl Sectors {
    /// Adds an access that lies in one sector or in two.
    #[inline(always)]
    pub(crate) fn add(&mut self, address: u64, bytes: u64) {
        self.insert(address / 32);
        let last = address.saturating_add(bytes - 1) / 32;
        if last != address / 32 {
            self.insert(last);
        }
    }

    #[inline(always)]
    fn insert(&mut self, sector: u64) {
        // Neighbouring lanes mostly share a sector or go on to the next.
        if self.count > 0 {
            let newest = self.sectors[self.count - 1];
            if newest == sector {
                return;
            }
            if newest > sector && self.sectors[..self.count].contains(&sector)
                || newest < sector
                    && self.sectors[..self.count].iter().rev().skip(1).any(|old| *old == sector)
            {
                return;
            }
        }
        if let Some(place) = self.sectors.get_mut(self.count) {
            *place = sector;
            self.count += 1;
        }
    }

    pub(crate) fn all(&self) -> &[u64] {
        &self.sectors[..self.count]
    }
}

/// Passes over the 32 banks of 4 bytes that an access of shared memory takes, and how many it
/// would take without conflicts. Wide accesses go in parts: 8 bytes by half warps, 16 bytes by
/// quarters. Lanes that read the same word share it.
#[inline]
pub(crate) fn wavefronts(offsets: &[u64; 32], mask: u32, bytes: u64) -> (u64, u64) {
    let lanes_a_part: u32 = match bytes {
        0..=4 => 32,
        8 => 16,
        _ => 8,
    };
    let words = bytes.div_ceil(4).max(1);
    let (mut total, mut ideal) = (0, 0);
    let mut first = 0;
    while first < 32 {
        let part = if lanes_a_part == 32 { u32::MAX } else { ((1 << lanes_a_part) - 1) << first };
        if mask & part != 0 {
            total += part_wavefronts(offsets, mask & part, words);
            ideal += 1;
        }
        first += lanes_a_part;
    }
    (total, ideal)
}

fn part_wavefronts(offsets: &[u64; 32], mask: u32, words: u64) -> u64 {
    let mut seen = [u64::MAX; 32];
    let mut conflict = false;
    let mut rest = mask;
    while rest != 0 {
        let lane = rest.trailing_zeros() as usize;
        rest &= rest - 1;
        for word in 0..words {
            let word = (offsets[lane] / 4).wrapping_add(word);
            let bank = &mut seen[(word % 32) as usize];
            conflict |= *bank != u64::MAX && *bank != word;
            *bank = word;
        }
    }
    if !conflict {
        return 1;
    }
    // Exactly: the most distinct words of a bank.
    let mut all = Vec::with_capacity(32 * words as usize);
    for lane in (0..32).filter(|lane| mask >> lane & 1 == 1) {
        for word in 0..words {
            all.push((offsets[lane as usize] / 4).wrapping_add(word));
        }
    }
    all.sort_unstable();
    all.dedup();
    let mut banks = [0u64; 32];
    for word in all {
        banks[(word % 32) as usize] += 1;
    }
    banks.into_iter().max().unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offsets(f: impl Fn(u64) -> u64) -> [u64; 32] {
        std::array::from_fn(|lane| f(lane as u64))
    }

    #[test]
    fn neighbours_share_sectors_and_strangers_do_not() {
        let mut sectors = Sectors::default();
        for lane in 0..32 {
            sectors.add(4096 + lane * 4, 4);
        }
        assert_eq!(sectors.all().len(), 4);
        let mut sectors = Sectors::default();
        for lane in 0..32 {
            sectors.add(4096 + (lane * 7 % 32) * 128, 4);
        }
        assert_eq!(sectors.all().len(), 32);
        let mut sectors = Sectors::default();
        for lane in 0..32u64 {
            sectors.add(4096 + (31 - lane) * 4, 4);
        }
        assert_eq!(sectors.all().len(), 4);
    }

    #[test]
    fn conflicts_are_distinct_words_of_one_bank() {
        assert_eq!(wavefronts(&offsets(|lane| lane * 4), u32::MAX, 4), (1, 1));
        assert_eq!(wavefronts(&offsets(|_| 64), u32::MAX, 4), (1, 1));
        assert_eq!(wavefronts(&offsets(|lane| lane * 128), u32::MAX, 4), (32, 1));
        assert_eq!(wavefronts(&offsets(|lane| lane * 8), u32::MAX, 4), (2, 1));
        assert_eq!(wavefronts(&offsets(|lane| lane * 16), u32::MAX, 16), (4, 4));
        assert_eq!(wavefronts(&offsets(|lane| lane * 256), u32::MAX, 16), (32, 4));
        assert_eq!(wavefronts(&offsets(|lane| lane * 8), 0xff, 8), (1, 1));
    }
}
