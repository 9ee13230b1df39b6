use super::*;
use proptest::prelude::*;

fn contents(store: &Store, run: Run) -> (Vec<Token>, Vec<PageId>) {
    let mut all = (Vec::new(), Vec::new());
    for (tokens, pages) in store.extents_of(run) {
        all.0.extend_from_slice(tokens);
        all.1.extend_from_slice(pages);
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn runs_keep_their_pages_through_growth_splits_and_cuts(
        page_size in prop::sample::select(vec![1usize, 4, 32]),
        steps in prop::collection::vec((0u8..4, any::<u16>(), 1usize..150), 1..120),
    ) {
        let mut store = Store::new(&CacheConfig::default().page_size(page_size));
        let mut live: Vec<(Run, Vec<PageId>)> = Vec::new();
        let mut number = 0;
        for (kind, pick, amount) in steps {
            let pick = if live.is_empty() { 0 } else { usize::from(pick) % live.len() };
            if kind == 0 || live.is_empty() {
                live.push((Run::EMPTY, Vec::new()));
            }
            let index = if kind == 0 { live.len() - 1 } else { pick };
            let (run, model) = &mut live[index];
            if kind <= 1 {
                let pages: Vec<PageId> = (number..number + amount as u32).map(PageId).collect();
                number += amount as u32;
                let tokens: Vec<Token> =
                    pages.iter().flat_map(|page| vec![page.0; page_size]).collect();
                store.reserve(amount).unwrap();
                store.append(run, &tokens, &pages);
                model.extend(pages);
            } else if kind == 2 && run.pages > 1 {
                let at = 1 + amount as u32 % (run.pages - 1);
                let upper = store.split(run, at);
                let lower = model.split_off(at as usize);
                let upper_model = core::mem::replace(model, lower);
                live.push((upper, upper_model));
            } else if kind == 3 {
                let keep = run.pages.saturating_sub(amount as u32);
                let mut freed = Vec::new();
                store.truncate(run, keep, &mut freed, &mut Vec::new());
                prop_assert_eq!(freed, model.split_off(keep as usize));
                if keep == 0 {
                    live.swap_remove(index);
                }
            }
            let used: usize = live.iter().map(|(_, model)| model.len()).sum();
            prop_assert_eq!(store.used(), used);
            for (run, model) in &live {
                let (tokens, pages) = contents(&store, *run);
                prop_assert_eq!(&pages, model);
                prop_assert_eq!(run.pages as usize, model.len());
                let expected: Vec<Token> =
                    model.iter().flat_map(|page| vec![page.0; page_size]).collect();
                prop_assert_eq!(&tokens, &expected);
                prop_assert_eq!(store.common_pages(*run, &tokens), run.pages);
            }
        }
    }
}

#[test]
fn a_mismatch_inside_a_page_does_not_count_it() {
    let mut store = Store::new(&CacheConfig::default().page_size(4));
    let mut run = Run::EMPTY;
    let tokens: Vec<Token> = (0..4096).collect();
    let pages: Vec<PageId> = (0..1024).map(PageId).collect();
    store.reserve(pages.len()).unwrap();
    store.append(&mut run, &tokens, &pages);
    for different in [0, 3, 4, 511, 512, 2047, 4095] {
        let mut query = tokens.clone();
        query[different] += 1;
        assert_eq!(store.common_pages(run, &query) as usize, different / 4);
    }
    assert_eq!(store.common_pages(run, &tokens[..10]), 2);
}
