//! Lanes of a warp that store to the same place at once.

/// Lanes of `mask` whose address a lower lane of `mask` has too, each with the lowest such lane.
///
/// A device executes one of the stores, or all of them one after the other, in no defined order.
#[inline(always)]
pub(crate) fn twins(addresses: &[u64; 32], mask: u32) -> Vec<(usize, usize)> {
    if ascends(addresses, mask) { Vec::new() } else { search(addresses, mask) }
}

/// Whether each lane's address is above that of the lane before: the usual case, told quickly.
#[inline(always)]
fn ascends(addresses: &[u64; 32], mask: u32) -> bool {
    let mut last = None;
    (0..32).filter(|lane| mask >> lane & 1 == 1).all(|lane| {
        let address = Some(addresses[lane]);
        let above = last < address;
        last = address;
        above
    })
}

#[cold]
fn search(addresses: &[u64; 32], mask: u32) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for lane in (0..32).filter(|lane| mask >> lane & 1 == 1) {
        let first =
            (0..lane).find(|first| mask >> first & 1 == 1 && addresses[*first] == addresses[lane]);
        found.extend(first.map(|first| (lane, first)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_with_addresses_of_their_own_have_no_twins() {
        let addresses = std::array::from_fn(|lane| lane as u64 * 4);
        assert_eq!(twins(&addresses, u32::MAX), []);
        let backward = std::array::from_fn(|lane| (31 - lane) as u64 * 4);
        assert_eq!(twins(&backward, u32::MAX), []);
    }

    #[test]
    fn lanes_with_the_address_of_a_lower_one_are_its_twins() {
        let pairs: [u64; 32] = std::array::from_fn(|lane| lane as u64 / 2 * 4);
        assert_eq!(twins(&pairs, 0xf), [(1, 0), (3, 2)]);
        // Lanes that take no part have no twins.
        assert_eq!(twins(&pairs, 0b1010), []);
        assert_eq!(twins(&[8; 32], 0b1101), [(2, 0), (3, 0)]);
    }
}
