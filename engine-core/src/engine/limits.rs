//! What an engine can hold, worked out once when it is built.

use super::kv_sizes::{KvPages, KvSizes};
use super::options::{EngineOptions, KvMemory};
use crate::backend::{Backend, Capabilities, CompileOptions, KvFormat, Limits};
use crate::error::EngineError;
use crate::kv::GroupKind;
use crate::model::Program;
use crate::schedule::{HostTierConfig, SchedulerConfig, WindowedConfig};

const DEFAULT_PAGE_SIZE: usize = 16;
const DEFAULT_CHUNK: usize = 512;
const MOST_RUNNING: u32 = 256;

/// More KV than this many full contexts for each sequence that runs is of no use as a default.
const CONTEXTS_KEPT: usize = 4;

/// What an engine can hold, given or derived, and what is odd about it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct EngineLimits {
    /// Tokens in a page.
    pub page_size: usize,
    /// Pages of KV in each page group whose layers attend to everything.
    pub pages: u32,
    /// Pages of KV in each page group whose layers attend to a window; 0 without any.
    pub windowed_pages: u32,
    /// Bytes that all of them take.
    pub kv_bytes: u64,
    /// How KV is stored.
    pub kv_format: KvFormat,
    /// Pages of KV on the host; 0 without a host tier.
    pub host_pages: u32,
    /// Bytes that those take.
    pub host_kv_bytes: u64,
    /// Longest sequence, in tokens.
    pub context_length: usize,
    /// Most samples that run at once.
    pub max_running_requests: u32,
    /// Most prompt tokens in a step.
    pub chunked_prefill_size: usize,
    /// What will make the engine slow or refuse requests. Logged as warnings at the start.
    pub warnings: Vec<LimitWarning>,
    /// By group of the program.
    kinds: Vec<GroupKind>,
    /// The widest window.
    window: Option<usize>,
}

/// A limit that is probably not what was meant.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LimitWarning {
    /// So few requests run at once that the device is mostly idle.
    #[error(
        "only {max_running_requests} request(s) run at once: give KV more memory, or set \
         max_running_requests"
    )]
    FewRunning {
        /// How many.
        max_running_requests: u32,
    },
    /// The KV memory doesn't hold one sequence as long as the model allows, or as was asked for.
    #[error(
        "KV memory holds {pool_tokens} tokens, less than one context of {context_length}: longer \
         requests are refused"
    )]
    PoolBelowContext {
        /// Tokens that fit.
        pool_tokens: usize,
        /// Tokens of a full context.
        context_length: usize,
    },
    /// The context was asked to be longer than the model was made for.
    #[error(
        "a context of {context_length} tokens was asked for, but the model was made for {model}"
    )]
    ContextBeyondModel {
        /// What was asked for.
        context_length: usize,
        /// What the model was made for.
        model: usize,
    },
    /// The KV memory holds less than a page for each request that may run.
    #[error(
        "KV memory holds {pool_tokens} tokens, less than a page for each of \
         {max_running_requests} requests that may run"
    )]
    PoolBelowRunning {
        /// Tokens that fit.
        pool_tokens: usize,
        /// How many may run.
        max_running_requests: u32,
    },
}

impl EngineLimits {
    /// Works them out. Weights take so many bytes on the device, and most are multiplied in less than
    /// f32, or not.
    pub(super) fn derive(
        options: &EngineOptions,
        program: &Program,
        model_context: usize,
        (weight_bytes, reduced): (u64, bool),
        backend: &dyn Backend,
    ) -> Result<Self, EngineError> {
        let capabilities = &backend.capabilities();
        let page_size = page_size(options, capabilities)?;
        let kv_format = kv_format(options, reduced, capabilities)?;
        positive("max_queued_requests", Some(options.max_queued_requests))?;
        let wanted_context = positive("context_length", options.context_length)?;
        let full_context = wanted_context.unwrap_or(model_context);
        let most_running = options.max_running_requests.unwrap_or(MOST_RUNNING);

        let chunk = positive("chunked_prefill_size", options.chunked_prefill_size)?;
        let chunk = chunk.unwrap_or(DEFAULT_CHUNK).min(full_context);
        let drafted = options.speculation.map_or(0, |speculation| speculation.max_draft.into());
        let tokens = (full_context, chunk, drafted);
        let sizes = KvSizes::new(program, backend, (page_size, kv_format), tokens);

        let available = capabilities.memory_bytes.saturating_sub(weight_bytes);
        let most = u64::from(u32::MAX - 1);
        let pages = match options.kv_memory {
            KvMemory::Bytes(bytes) => sizes.within(bytes, most),
            KvMemory::Tokens(tokens) => sizes.beside((tokens.div_ceil(page_size) as u64).min(most)),
            KvMemory::Fraction(fraction) => {
                let contexts = CONTEXTS_KEPT as u64 * u64::from(most_running);
                let useful = contexts.saturating_mul(full_context.div_ceil(page_size) as u64);
                sizes.within(part("kv_memory", fraction, available)?, useful.min(most))
            }
        };
        let has_window = sizes.window.is_some();
        if pages.full == 0 || (has_window && pages.windowed == 0) {
            let page_bytes = sizes.page_bytes();
            return Err(EngineError::NoRoomForKv { available, page_size, page_bytes });
        }
        let kv_bytes = sizes.bytes(pages);
        let KvPages { full, windowed } = pages;
        let pages = u32::try_from(full).unwrap_or(u32::MAX - 1);
        let windowed_pages = u32::try_from(windowed).unwrap_or(u32::MAX - 1);
        let pool_tokens = (pages as usize).saturating_mul(page_size);

        let mut warnings = Vec::new();
        if let Some(context_length) = wanted_context.filter(|&wanted| wanted > model_context) {
            warnings
                .push(LimitWarning::ContextBeyondModel { context_length, model: model_context });
        }
        if pool_tokens < full_context {
            let context_length = full_context;
            warnings.push(LimitWarning::PoolBelowContext { pool_tokens, context_length });
        }
        let context_length = full_context.min(pool_tokens);
        let max_running_requests = match options.max_running_requests {
            Some(0) => {
                let reason = "at least one request must run".to_owned();
                return Err(EngineError::Option { option: "max_running_requests", reason });
            }
            Some(given) => given,
            None => {
                let typical = EngineOptions::TYPICAL_TOKENS.min(context_length).max(1);
                (pool_tokens / typical).clamp(1, MOST_RUNNING as usize) as u32
            }
        };
        if max_running_requests <= 2 {
            warnings.push(LimitWarning::FewRunning { max_running_requests });
        }
        if pages < max_running_requests {
            warnings.push(LimitWarning::PoolBelowRunning { pool_tokens, max_running_requests });
        }
        let host_pages = host_pages(options, &sizes, page_size, capabilities)?;
        Ok(Self {
            page_size,
            pages,
            windowed_pages,
            kv_bytes,
            kv_format,
            host_pages,
            host_kv_bytes: u64::from(host_pages) * sizes.full_bytes,
            context_length,
            max_running_requests,
            chunked_prefill_size: chunk.min(context_length),
            warnings,
            kinds: sizes.kinds,
            window: sizes.window,
        })
    }

    pub(super) fn scheduler_config(&self, options: &EngineOptions) -> SchedulerConfig {
        let mut config = SchedulerConfig::new(
            self.page_size,
            self.pages,
            self.max_running_requests,
            self.context_length,
        );
        config.groups.clone_from(&self.kinds);
        let pages = self.windowed_pages;
        config.windowed = self.window.map(|window| WindowedConfig { window, pages });
        config.chunked_prefill_size = self.chunked_prefill_size;
        // The engine counts who waits before the scheduler hears of them.
        config.max_waiting = usize::MAX;
        config.cache = options.cache;
        config.cache_events = options.cache_events;
        config.queue_policy = options.queue_policy;
        config.eviction_policy = options.eviction_policy;
        if self.host_pages > 0 {
            let mut tier = HostTierConfig::new(self.host_pages);
            tier.write = options.host_write_policy;
            tier.min_load_tokens = options.host_min_load_tokens;
            config.host_tier = Some(tier);
        }
        config.speculation = options.speculation;
        config.retract_every = options.retract_every;
        config
    }

    pub(super) fn compile_options(
        &self,
        options: &EngineOptions,
        capabilities: &Capabilities,
        config: &SchedulerConfig,
    ) -> Result<CompileOptions, EngineError> {
        let limits = Limits {
            rows: self.max_running_requests,
            tokens: as_u32("chunked_prefill_size", config.step_tokens())?,
            outputs: as_u32("max_running_requests", config.step_outputs())?,
            slots: self.max_running_requests,
            pages: self.kinds.iter().map(|&kind| self.pages_of(kind)).collect(),
        };
        let context_length = as_u32("context_length", self.context_length)?;
        let page_size = as_u32("page_size", self.page_size)?;
        let mut compile = CompileOptions::new(limits, page_size, context_length);
        compile.kv_format = self.kv_format;
        compile.compute = options.compute;
        compile.deterministic = options.deterministic;
        compile.hidden = options.embeddings || !capabilities.prepares_hidden;
        compile.longest_draft = options.speculation.map_or(0, |s| s.max_draft.into());
        if self.host_pages > 0 {
            compile.host_pages = vec![self.host_pages; self.kinds.len()];
        }
        Ok(compile)
    }

    fn pages_of(&self, kind: GroupKind) -> u32 {
        match kind {
            GroupKind::Full => self.pages,
            GroupKind::Windowed => self.windowed_pages,
        }
    }
}

fn page_size(options: &EngineOptions, capabilities: &Capabilities) -> Result<usize, EngineError> {
    let takes = |size: usize| capabilities.page_sizes.iter().any(|&page| page as usize == size);
    if let Some(page_size) = options.page_size {
        if takes(page_size) {
            return Ok(page_size);
        }
        let reason = format!("the backend takes {:?}, not {page_size}", capabilities.page_sizes);
        return Err(EngineError::Option { option: "page_size", reason });
    }
    if takes(DEFAULT_PAGE_SIZE) {
        return Ok(DEFAULT_PAGE_SIZE);
    }
    let smallest = capabilities.page_sizes.first().map(|&page| page as usize);
    smallest.ok_or_else(|| EngineError::Option {
        option: "page_size",
        reason: "the backend takes none".to_owned(),
    })
}

/// Pages of the host tier, 0 for none.
fn host_pages(
    options: &EngineOptions,
    sizes: &KvSizes,
    page_size: usize,
    capabilities: &Capabilities,
) -> Result<u32, EngineError> {
    let page_bytes = sizes.full_bytes.max(1);
    let available = capabilities.host_memory_bytes;
    let pages = match options.host_kv_memory {
        KvMemory::NONE | KvMemory::Tokens(0) => return Ok(0),
        KvMemory::Bytes(bytes) => bytes / page_bytes,
        KvMemory::Tokens(tokens) => tokens.div_ceil(page_size) as u64,
        KvMemory::Fraction(fraction) => part("host_kv_memory", fraction, available)? / page_bytes,
    };
    if available == 0 {
        return Err(EngineError::NoHostMemory { backend: capabilities.description.clone() });
    }
    let refuse = |reason: String| Err(EngineError::Option { option: "host_kv_memory", reason });
    if !options.cache {
        return refuse("it keeps what the cache keeps, and that is switched off".to_owned());
    }
    if sizes.window.is_some() {
        return refuse(
            "the program has windowed page groups, and a prefix comes back from the host without \
             the pages of its window"
                .to_owned(),
        );
    }
    if pages == 0 || pages.saturating_mul(page_bytes) > available {
        let needed = pages.max(1).saturating_mul(page_bytes);
        return Err(EngineError::HostMemory { needed, available, page_size, page_bytes });
    }
    Ok(u32::try_from(pages).unwrap_or(u32::MAX - 1))
}

fn part(option: &'static str, fraction: f64, of: u64) -> Result<u64, EngineError> {
    if fraction > 0.0 && fraction <= 1.0 {
        return Ok((of as f64 * fraction) as u64);
    }
    let reason = format!("a fraction above 0 and at most 1 is needed, not {fraction}");
    Err(EngineError::Option { option, reason })
}

fn kv_format(
    options: &EngineOptions,
    reduced: bool,
    capabilities: &Capabilities,
) -> Result<KvFormat, EngineError> {
    if let Some(format) = options.kv_format {
        // Compiling says so if the backend doesn't have it.
        return Ok(format);
    }
    if reduced && capabilities.kv_formats.contains(&KvFormat::Bf16) {
        return Ok(KvFormat::Bf16);
    }
    capabilities.kv_formats.first().copied().ok_or_else(|| EngineError::Option {
        option: "kv_format",
        reason: "the backend takes none".to_owned(),
    })
}

fn positive(option: &'static str, value: Option<usize>) -> Result<Option<usize>, EngineError> {
    match value {
        Some(0) => {
            Err(EngineError::Option { option, reason: "0 can't serve a request".to_owned() })
        }
        value => Ok(value),
    }
}

fn as_u32(option: &'static str, value: usize) -> Result<u32, EngineError> {
    u32::try_from(value)
        .map_err(|_| EngineError::Option { option, reason: format!("{value} is too large") })
}
