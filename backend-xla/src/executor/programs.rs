//! The compiled modules of an executor: prepared at warm-up, or compiled when first needed.

use std::collections::HashMap;

use engine_core::{
    backend::{BackendError, GroupId, Limits, Progress},
    model::Program,
};

use super::launch::{floats, upload_as, words};
use crate::{
    buckets::Buckets,
    cache::Compiler,
    error::device,
    load::Sharded,
    lower::{
        Geometry, Module,
        placement::Placement,
        sampler::{self, mask_words},
        state,
        step::{self, StepShape},
    },
    pallas::Kernels,
    pjrt::{ElementType, LoadedExecutable},
};

/// Tokens of a prefill row that share one walk through its pages.
const PREFILL_BLOCK: usize = 16;

/// Which module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    Fresh,
    SetPages,
    SetCounts,
    CopyPage(GroupId),
    Step(StepShape),
}

/// The modules of one program.
#[derive(Debug)]
pub(super) struct Programs {
    compiler: Compiler,
    program: Program,
    placement: Placement,
    geometry: Geometry,
    kernels: Option<Kernels>,
    buckets: Buckets,
    ready: HashMap<Key, LoadedExecutable>,
    samplers: HashMap<usize, Sampler>,
    is_warm: bool,
    compiles_in_traffic: u64,
}

/// The sampler of some number of outputs, with the inputs that few requests need otherwise.
#[derive(Debug)]
pub(super) struct Sampler {
    pub(super) executable: LoadedExecutable,
    pub(super) no_bias: Sharded,
    pub(super) no_mask: Sharded,
}

impl Programs {
    pub(super) fn new(
        compiler: Compiler,
        program: Program,
        placement: Placement,
        geometry: Geometry,
        kernels: Option<Kernels>,
        limits: &Limits,
    ) -> Self {
        let buckets = match kernels {
            Some(_) => Buckets::ragged(limits),
            None => Buckets::in_runs(limits, PREFILL_BLOCK),
        };
        Self {
            compiler,
            program,
            placement,
            geometry,
            kernels,
            buckets,
            ready: HashMap::new(),
            samplers: HashMap::new(),
            is_warm: false,
            compiles_in_traffic: 0,
        }
    }

    #[cfg(test)]
    pub(super) fn client(&self) -> &crate::pjrt::Client {
        self.compiler.client()
    }

    pub(super) fn program(&self) -> &Program {
        &self.program
    }

    pub(super) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    pub(super) fn buckets(&self) -> &Buckets {
        &self.buckets
    }

    pub(super) fn devices(&self) -> usize {
        self.placement.devices
    }

    pub(super) fn compiles_in_traffic(&self) -> u64 {
        self.compiles_in_traffic
    }

    /// Prepares every module that a batch within the limits can need.
    pub(super) fn warm_up(&mut self, progress: &mut dyn Progress) -> Result<(), BackendError> {
        let groups = (0..self.program.groups().len()).map(|group| GroupId(group as u8));
        let mut keys = vec![Key::Fresh, Key::SetPages, Key::SetCounts];
        keys.extend(groups.map(Key::CopyPage));
        keys.extend(self.buckets.all().into_iter().map(Key::Step));
        let samplers = self.buckets.outputs();
        let total = (keys.len() + samplers.len()) as u64;
        let mut done = 0;
        let mut report = || {
            progress.update("compiled modules", done, total);
            done += 1;
        };
        report();
        for key in keys {
            self.module(key)?;
            report();
        }
        for outputs in samplers {
            self.sampler(outputs)?;
            report();
        }
        self.is_warm = true;
        Ok(())
    }

    pub(super) fn fresh(&mut self) -> Result<&LoadedExecutable, BackendError> {
        self.module(Key::Fresh)
    }

    pub(super) fn set_pages(&mut self) -> Result<&LoadedExecutable, BackendError> {
        self.module(Key::SetPages)
    }

    pub(super) fn set_counts(&mut self) -> Result<&LoadedExecutable, BackendError> {
        self.module(Key::SetCounts)
    }

    pub(super) fn copy_page(&mut self, group: GroupId) -> Result<&LoadedExecutable, BackendError> {
        self.module(Key::CopyPage(group))
    }

    pub(super) fn step(&mut self, shape: StepShape) -> Result<&LoadedExecutable, BackendError> {
        self.module(Key::Step(shape))
    }

    /// The sampler of `outputs` rows.
    pub(super) fn sampler(&mut self, outputs: usize) -> Result<&Sampler, BackendError> {
        if !self.samplers.contains_key(&outputs) {
            let vocab_size = self.program.vocab_size() as usize;
            let devices = self.devices();
            let module = sampler::sampler(&self.geometry, vocab_size, outputs, devices);
            let executable = self.load(&module, "compiling the sampler")?;
            let client = self.compiler.client();
            let place = |element, columns: usize, bytes: &[u8]| {
                let dims = [outputs as i64, columns as i64];
                upload_as(client, devices, element, &dims, bytes)
                    .map_err(|error| device(error, "placing the sampler's defaults"))
            };
            let bias = floats(&vec![0.0; outputs * vocab_size]);
            let mask = words(&vec![u32::MAX; outputs * mask_words(vocab_size)]);
            let sampler = Sampler {
                executable,
                no_bias: place(ElementType::F32, vocab_size, &bias)?,
                no_mask: place(ElementType::U32, mask_words(vocab_size), &mask)?,
            };
            self.samplers.insert(outputs, sampler);
        }
        Ok(&self.samplers[&outputs])
    }

    fn module(&mut self, key: Key) -> Result<&LoadedExecutable, BackendError> {
        if !self.ready.contains_key(&key) {
            let (program, placement, geometry) = (&self.program, &self.placement, &self.geometry);
            let vocab_size = program.vocab_size() as usize;
            let (module, context) = match key {
                Key::Fresh => (
                    state::fresh(program, placement, geometry),
                    "compiling the allocation".to_owned(),
                ),
                Key::SetPages => {
                    let module = state::set_pages(geometry, placement.devices);
                    (module, "compiling the page tables' update".to_owned())
                }
                Key::SetCounts => {
                    let module = state::set_counts(geometry, vocab_size, placement.devices);
                    (module, "compiling the counts' update".to_owned())
                }
                Key::CopyPage(group) => {
                    let module = state::copy_page(program, placement, geometry, group);
                    (module, "compiling the copy of a page".to_owned())
                }
                Key::Step(shape) => {
                    let module =
                        step::step(program, placement, geometry, self.kernels.as_ref(), shape)?;
                    (module, format!("compiling {shape:?}"))
                }
            };
            let executable = self.load(&module, &context)?;
            self.ready.insert(key, executable);
        }
        Ok(&self.ready[&key])
    }

    fn load(&mut self, module: &Module, context: &str) -> Result<LoadedExecutable, BackendError> {
        if self.is_warm {
            self.compiles_in_traffic += 1;
            tracing::warn!(context, "a compilation in traffic");
        }
        self.compiler.load(module).map_err(|error| device(error, context))
    }
}
