//! What is checked before anything is compiled or loaded.

use crate::program::{Program, Weight};
use crate::weights::Shape;
use crate::{
    Backend, BackendError, Capabilities, CompileOptions, Compute, GroupId, Limits, PageCopy,
    PageId, StepError, Tier,
};

/// Checks what `programs` and `options` ask of a backend called `backend`, apart from memory: there
/// is a program, each page group has its capacity, page size, KV format and precision are among the
/// capabilities, and no limit is zero.
///
/// # Errors
///
/// [`BackendError::Option`] for what makes no sense, [`BackendError::Unsupported`] for a KV format,
/// a precision or a host tier that the backend doesn't have.
pub fn check_options(
    backend: &'static str,
    capabilities: &Capabilities,
    programs: &[Program],
    options: &CompileOptions,
) -> Result<(), BackendError> {
    let invalid = |option, reason| Err(BackendError::Option { option, reason });
    let unsupported = |what| Err(BackendError::Unsupported { backend, what });
    // Programs and groups are numbered in a byte.
    const MOST: usize = 1 << u8::BITS;
    let groups = programs.iter().map(|program| program.groups().len()).sum();
    if programs.is_empty() || programs.len() > MOST || groups > MOST {
        return invalid("programs", format!("{} with {groups} page groups", programs.len()));
    }
    let CompileOptions { limits, host_pages, page_size, kv_format, compute, .. } = options;
    if !capabilities.page_sizes.contains(page_size) {
        let reason = format!("{page_size} is none of {:?}", capabilities.page_sizes);
        return invalid("page_size", reason);
    }
    if !capabilities.kv_formats.contains(kv_format) {
        return unsupported(format!("KV in {kv_format}"));
    }
    let needs_nothing = matches!(compute, Compute::Exact | Compute::Auto);
    if !needs_nothing && !capabilities.computes.contains(compute) {
        return unsupported(format!("computing in {compute}"));
    }
    if limits.pages.len() != groups {
        let reason = format!("{} for {groups} page groups", limits.pages.len());
        return invalid("limits.pages", reason);
    }
    if !host_pages.is_empty() && host_pages.len() != groups {
        return invalid("host_pages", format!("{} for {groups} page groups", host_pages.len()));
    }
    if host_pages.iter().any(|&pages| pages > 0) && capabilities.host_memory_bytes == 0 {
        return unsupported("a host tier of KV pages".to_owned());
    }
    let Limits { rows, tokens, slots, .. } = *limits;
    if rows == 0 || tokens == 0 || slots == 0 {
        return invalid("limits", format!("{rows} rows, {tokens} tokens and {slots} slots"));
    }
    if options.context_length == 0 {
        return invalid("context_length", "0".to_owned());
    }
    Ok(())
}

/// Bytes of KV that so many pages take on the backend; `pages` has an entry for each group of the
/// programs, one program after another.
pub fn kv_bytes(
    backend: &(impl Backend + ?Sized),
    programs: &[Program],
    pages: &[u32],
    options: &CompileOptions,
) -> u64 {
    let groups = programs.iter().flat_map(|program| {
        (0..program.groups().len()).map(move |group| (program, GroupId(group as u8)))
    });
    groups.zip(pages).fold(0, |sum: u64, ((program, group), &pages)| {
        let page = backend.page_bytes(program, group, options.page_size, options.kv_format);
        sum.saturating_add(page.saturating_mul(pages.into()))
    })
}

/// Checks that `what` fits.
///
/// # Errors
///
/// [`BackendError::Memory`].
pub fn check_memory(
    what: impl Into<String>,
    needed: u64,
    available: u64,
) -> Result<(), BackendError> {
    if needed > available {
        return Err(BackendError::Memory { what: what.into(), needed, available });
    }
    Ok(())
}

/// Checks that a tensor has the shape that the program declares.
///
/// # Errors
///
/// [`BackendError::Shape`].
pub fn check_weight_shape(weight: &Weight, shape: Shape) -> Result<(), BackendError> {
    let found = shape.dims();
    if found != weight.shape {
        let (name, expected) = (weight.name.clone(), weight.shape.clone());
        return Err(BackendError::Shape { name, expected, found });
    }
    Ok(())
}

/// Checks that each page that `copies` name exists: `device` and `host` are the pages of each tier by
/// page group, and `host` is empty without a host tier.
///
/// # Errors
///
/// [`StepError::Unsupported`]; then no copy may be made.
pub fn check_copies(copies: &[PageCopy], device: &[u32], host: &[u32]) -> Result<(), StepError> {
    if host.is_empty() {
        return Err(StepError::Unsupported { what: "transfers without a host tier" });
    }
    let exists = |copy: &PageCopy, (tier, page): (Tier, PageId)| {
        let pages = match tier {
            Tier::Device => device,
            Tier::Host => host,
        };
        pages.get(copy.group.index()).is_some_and(|&pages| page.0 < pages)
    };
    if copies.iter().all(|copy| exists(copy, copy.from) && exists(copy, copy.to)) {
        return Ok(());
    }
    Err(StepError::Unsupported { what: "transfers of pages that don't exist" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::{AttentionOptions, ProgramBuilder, ProgramError, Split};
    use crate::weights::Shape;
    use crate::{Executor, KvFormat, weights::Weights};

    /// A program with a group of `layers` layers for each entry.
    fn program(layers: &[u32]) -> Result<Program, ProgramError> {
        let mut b = ProgramBuilder::new("test", 16);
        let mut x = b.embed("embed", 8, 1.0);
        for &layers in layers {
            let options =
                AttentionOptions { group: b.page_group(2, 4, None), ..AttentionOptions::full(4) };
            for _ in 0..layers {
                x = b.attention(x, x, x, &options);
            }
        }
        let selected = b.select_outputs(x);
        b.finish_with_logits(selected, "embed", None)
    }

    fn options(pages: &[u32]) -> CompileOptions {
        let limits = Limits { rows: 1, tokens: 1, outputs: 1, slots: 1, pages: pages.to_vec() };
        CompileOptions::new(limits, 16, 64)
    }

    fn refusal(change: impl FnOnce(&mut CompileOptions)) -> BackendError {
        let programs =
            [program(&[1, 2]).expect("well formed"), program(&[1]).expect("well formed")];
        let mut options = options(&[5, 6, 7]);
        change(&mut options);
        let capabilities = Capabilities::new("test", 1 << 20);
        let checked = check_options("test", &capabilities, &programs, &options);
        checked.expect_err("a refusal")
    }

    #[test]
    fn what_makes_no_sense_is_told_from_what_is_not_supported() {
        let option = |error| match error {
            BackendError::Option { option, .. } => option,
            other => panic!("{other}"),
        };
        assert_eq!(option(refusal(|it| it.page_size = 24)), "page_size");
        assert_eq!(option(refusal(|it| it.limits.pages.truncate(2))), "limits.pages");
        assert_eq!(option(refusal(|it| it.host_pages = vec![1, 1])), "host_pages");
        assert_eq!(option(refusal(|it| it.limits.slots = 0)), "limits");
        assert_eq!(option(refusal(|it| it.context_length = 0)), "context_length");
        let unsupported = |error| matches!(error, BackendError::Unsupported { .. });
        assert!(unsupported(refusal(|it| it.kv_format = KvFormat::Bf16)));
        assert!(unsupported(refusal(|it| it.compute = Compute::Int8)));
        assert!(unsupported(refusal(|it| it.host_pages = vec![0, 0, 1])));
        let capabilities = Capabilities::new("test", 1 << 20);
        let checked = check_options("test", &capabilities, &[], &options(&[]));
        assert_eq!(option(checked.expect_err("no program")), "programs");
    }

    #[derive(Debug)]
    struct Plain;

    impl Backend for Plain {
        fn capabilities(&self) -> Capabilities {
            Capabilities::new("plain", 0)
        }

        fn compile(
            &self,
            _programs: &[Program],
            _weights: &dyn Weights,
            _options: &CompileOptions,
        ) -> Result<Box<dyn Executor>, BackendError> {
            Err(BackendError::Unsupported { backend: "plain", what: "anything".to_owned() })
        }
    }

    #[test]
    fn kv_is_summed_over_the_groups_of_all_programs() {
        let programs =
            [program(&[1, 2]).expect("well formed"), program(&[3]).expect("well formed")];
        // Keys and values of two heads of four, in f32, at sixteen positions.
        let page = 2 * 2 * 4 * 4 * 16;
        let bytes = kv_bytes(&Plain, &programs, &[5, 6, 7], &options(&[]));
        assert_eq!(bytes, page * (5 + 2 * 6 + 3 * 7));
        assert!(check_memory("KV", bytes, bytes).is_ok());
        let error = check_memory("KV", bytes, bytes - 1).expect_err("too much");
        assert!(matches!(error, BackendError::Memory { needed, .. } if needed == bytes));
    }

    #[test]
    fn a_vector_is_no_matrix_of_one_row() {
        let weight = Weight { name: "a".to_owned(), shape: vec![2], split: Split::None };
        assert!(check_weight_shape(&weight, Shape::Vector(2)).is_ok());
        let error = check_weight_shape(&weight, Shape::matrix(1, 2));
        assert!(matches!(error, Err(BackendError::Shape { found, .. }) if found == [1, 2]));
    }
}
