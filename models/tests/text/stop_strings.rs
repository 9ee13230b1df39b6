use models::text::{StopStrings, TextError};
use proptest::prelude::*;

/// Feeds the pieces and returns what was shown in all, and which stop string ended it.
fn run(stop_strings: &StopStrings, pieces: &[&str]) -> (String, Option<usize>) {
    let mut matcher = stop_strings.matcher();
    let mut shown = String::new();
    for piece in pieces {
        let scan = matcher.push(piece);
        shown.push_str(scan.text);
        if let Some(index) = scan.stopped {
            assert_eq!(matcher.push("more").text, "", "nothing is shown after the stop");
            assert_eq!(matcher.finish(), "");
            return (shown, Some(index));
        }
    }
    shown.push_str(&matcher.finish());
    (shown, None)
}

fn stops(strings: &[&str]) -> StopStrings {
    StopStrings::new(strings, false).unwrap()
}

#[test]
fn possible_beginning_of_a_stop_string_is_held_back_until_it_is_decided() {
    let stop_strings = stops(&["END!"]);
    let mut matcher = stop_strings.matcher();
    assert_eq!(matcher.push("the EN").text, "the ");
    assert_eq!(matcher.push("D").text, "");
    assert_eq!(matcher.push("E").text, "END");
    assert_eq!(matcher.push("ND?").text, "END?");
    assert_eq!(matcher.push(" E").text, " ");
    assert_eq!(matcher.finish(), "E");
}

#[test]
fn stop_string_across_pieces_ends_the_text_before_it() {
    assert_eq!(run(&stops(&["\nUser:"]), &["Hi\n", "Us", "er: and"]), ("Hi".to_owned(), Some(0)));
}

#[test]
fn stop_string_that_is_complete_too_early_is_text_and_one_that_only_begins_early_counts() {
    let stop_strings = stops(&["abab", "xyz"]);
    let mut matcher = stop_strings.matcher();
    assert_eq!(matcher.push_early("xyz abab"), "xyz ab");
    let scan = matcher.push("ab");
    assert_eq!((scan.text, scan.stopped), ("", Some(0)));

    let mut matcher = stop_strings.matcher();
    assert_eq!(matcher.push_early("abab"), "ab");
    assert_eq!(matcher.push("?").text, "ab?");
    assert_eq!(matcher.finish(), "");
}

#[test]
fn stop_string_can_be_included() {
    let stop_strings = StopStrings::new(["}"], true).unwrap();
    assert_eq!(run(&stop_strings, &["{1", "}} "]), ("{1}".to_owned(), Some(0)));
}

#[test]
fn stop_string_that_is_complete_first_wins_and_among_those_the_longest() {
    assert_eq!(run(&stops(&["abcd", "bc"]), &["abcd"]), ("a".to_owned(), Some(1)));
    assert_eq!(run(&stops(&["c", "bc"]), &["abc"]), ("a".to_owned(), Some(1)));
}

#[test]
fn overlapping_repetition_is_matched() {
    assert_eq!(run(&stops(&["aab"]), &["a", "a", "a", "b"]), ("a".to_owned(), Some(0)));
}

#[test]
fn stop_string_of_many_bytes_a_character_is_never_cut_within_one() {
    let stop_strings = stops(&["é日"]);
    // U+00E8 shares its first byte with the stop string's.
    assert_eq!(run(&stop_strings, &["è", "é", "日"]), ("è".to_owned(), Some(0)));
}

#[test]
fn empty_stop_string_is_refused() {
    let error = StopStrings::new(["a", ""], false).unwrap_err();
    assert!(matches!(error, TextError::EmptyStopString { index: 1 }), "{error}");
}

#[test]
fn without_stop_strings_everything_is_shown_at_once() {
    let stop_strings = stops(&[]);
    assert!(stop_strings.is_empty());
    assert_eq!(stop_strings.matcher().push("text").text, "text");
}

/// The definition: of all occurrences in the whole text the one that ends first, and of those
/// the one that begins first.
fn naive(strings: &[String], include: bool, text: &str) -> (String, Option<usize>) {
    let occurrences = strings.iter().enumerate().flat_map(|(index, string)| {
        (0..text.len())
            .filter(|start| text.as_bytes()[*start..].starts_with(string.as_bytes()))
            .map(move |start| (start + string.len(), start, index))
    });
    match occurrences.min() {
        None => (text.to_owned(), None),
        Some((end, start, index)) => {
            (text[..if include { end } else { start }].to_owned(), Some(index))
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn streamed_text_is_that_of_a_naive_search_however_it_is_cut(
        // Few letters, so that partial matches abound; two of them share a byte in UTF-8.
        strings in proptest::collection::vec("[abéè]{1,4}", 0..4),
        pieces in proptest::collection::vec("[abéè]{0,5}", 0..12),
        include in any::<bool>(),
    ) {
        let stop_strings = StopStrings::new(&strings, include).unwrap();
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        prop_assert_eq!(run(&stop_strings, &pieces), naive(&strings, include, &pieces.concat()));
    }

    #[test]
    fn nothing_is_held_back_that_cannot_become_a_stop_string(
        strings in proptest::collection::vec("[ab]{1,5}", 1..4),
        pieces in proptest::collection::vec("[abc]{0,4}", 0..12),
    ) {
        let stop_strings = StopStrings::new(&strings, false).unwrap();
        let mut matcher = stop_strings.matcher();
        let (mut text, mut shown) = (String::new(), 0);
        for piece in pieces {
            let scan = matcher.push(&piece);
            if scan.stopped.is_some() {
                break;
            }
            text.push_str(&piece);
            shown += scan.text.len();
            let held = &text[shown..];
            prop_assert!(held.is_empty() || strings.iter().any(|string| string.starts_with(held)));
        }
    }
}
