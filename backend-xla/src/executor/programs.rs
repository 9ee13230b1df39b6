//! The compiled modules of an executor: prepared at warm-up, or compiled when first needed.

use std::{
    collections::HashMap,
    panic::resume_unwind,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use backend_api::{BackendError, GroupId, Limits, Progress, program::Program};

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
    /// Of so many outputs.
    Sampler(usize),
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
        keys.extend(self.buckets.outputs().into_iter().map(Key::Sampler));
        let total = keys.len() as u64;
        progress.update("compiled modules", 0, total);
        let found = self.find_all(&keys)?;
        for (done, (&key, found)) in (1..).zip(keys.iter().zip(found)) {
            let executable = match found {
                Some(executable) => executable,
                None => self.compile(key)?,
            };
            self.add(key, executable)?;
            progress.update("compiled modules", done, total);
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
            let key = Key::Sampler(outputs);
            let executable = self.prepare_in_traffic(key)?;
            self.add(key, executable)?;
        }
        Ok(&self.samplers[&outputs])
    }

    fn module(&mut self, key: Key) -> Result<&LoadedExecutable, BackendError> {
        if !self.ready.contains_key(&key) {
            let executable = self.prepare_in_traffic(key)?;
            self.add(key, executable)?;
        }
        Ok(&self.ready[&key])
    }

    fn prepare_in_traffic(&mut self, key: Key) -> Result<LoadedExecutable, BackendError> {
        if self.is_warm {
            self.compiles_in_traffic += 1;
            tracing::warn!(?key, "a compilation in traffic");
        }
        match self.compiler.find(&self.describe(key)?) {
            Some(executable) => Ok(executable),
            None => self.compile(key),
        }
    }

    /// Those of some modules that are on disk. Loading one keeps a thread busy, so each core has
    /// one; compilers use all cores by themselves.
    fn find_all(&self, keys: &[Key]) -> Result<Vec<Option<LoadedExecutable>>, BackendError> {
        let threads = thread::available_parallelism().map_or(1, usize::from).min(keys.len());
        let next = AtomicUsize::new(0);
        let work = || {
            let mut found = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(&key) = keys.get(index) else { return Ok(found) };
                found.push((index, self.compiler.find(&self.describe(key)?)));
            }
        };
        let mut all: Vec<Option<LoadedExecutable>> = keys.iter().map(|_| None).collect();
        thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            for worker in workers {
                let found: Result<_, BackendError> =
                    worker.join().unwrap_or_else(|panic| resume_unwind(panic));
                for (index, executable) in found? {
                    all[index] = executable;
                }
            }
            Ok(all)
        })
    }

    fn compile(&self, key: Key) -> Result<LoadedExecutable, BackendError> {
        let compiled = self.compiler.compile(&self.describe(key)?);
        compiled.map_err(|error| device(error, format!("compiling {key:?}")))
    }

    /// What is to be compiled.
    fn describe(&self, key: Key) -> Result<Module, BackendError> {
        let (program, placement, geometry) = (&self.program, &self.placement, &self.geometry);
        let (vocab_size, devices) = (program.vocab_size() as usize, placement.devices);
        Ok(match key {
            Key::Fresh => state::fresh(program, placement, geometry),
            Key::SetPages => state::set_pages(geometry, devices),
            Key::SetCounts => state::set_counts(geometry, vocab_size, devices),
            Key::CopyPage(group) => state::copy_page(program, placement, geometry, group),
            Key::Step(shape) => {
                step::step(program, placement, geometry, self.kernels.as_ref(), shape)?
            }
            Key::Sampler(outputs) => sampler::sampler(geometry, vocab_size, outputs, devices),
        })
    }

    /// An executable is ready from here on.
    fn add(&mut self, key: Key, executable: LoadedExecutable) -> Result<(), BackendError> {
        let Key::Sampler(outputs) = key else {
            self.ready.insert(key, executable);
            return Ok(());
        };
        let (client, devices) = (self.compiler.client(), self.devices());
        let vocab_size = self.program.vocab_size() as usize;
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
        Ok(())
    }
}
