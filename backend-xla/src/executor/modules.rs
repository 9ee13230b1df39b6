//! The compiled modules of an executor: prepared at warm-up, or compiled when first needed.

use std::{
    collections::{BTreeSet, HashMap},
    panic::resume_unwind,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use backend_api::{BackendError, CompileOptions, GroupId, ProgramId, Progress};

use super::launch::{floats, upload_as, words};
use crate::{
    buckets::Buckets,
    compiler::Compiler,
    error::device,
    load::Sharded,
    lower::{
        Module, Placed,
        sampler::{self, SamplerShape, mask_words},
        state,
        step::{self, StepShape},
    },
    pjrt::{ElementType, LoadedExecutable},
};

/// Tokens of a prefill row that share one walk through its pages.
const PREFILL_BLOCK: usize = 16;

/// Which module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Key {
    Fresh(ProgramId),
    FreshCounts,
    SetPages,
    SetCounts,
    /// Of a program's own group.
    CopyPage(ProgramId, GroupId),
    Step(ProgramId, StepShape),
    Sampler(SamplerShape),
}

/// The modules of an executor's programs.
#[derive(Debug)]
pub(super) struct Modules {
    compiler: Compiler,
    programs: Vec<Placed>,
    /// By program.
    buckets: Vec<Buckets>,
    slots: usize,
    /// Tokens that are counted.
    counted: usize,
    ready: HashMap<Key, LoadedExecutable>,
    samplers: HashMap<SamplerShape, Sampler>,
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

impl Modules {
    /// Modules of programs, of which there is one at least.
    pub(super) fn new(compiler: Compiler, programs: Vec<Placed>, options: &CompileOptions) -> Self {
        let buckets = programs.iter().map(|program| match program.kernels {
            Some(_) => Buckets::ragged(options),
            None => Buckets::in_runs(options, PREFILL_BLOCK),
        });
        let counted = programs.iter().map(|placed| placed.program.vocab_size()).max();
        Self {
            compiler,
            buckets: buckets.collect(),
            programs,
            slots: options.limits.slots as usize,
            counted: counted.unwrap_or(0) as usize,
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

    pub(super) fn programs(&self) -> &[Placed] {
        &self.programs
    }

    pub(super) fn program(&self, program: ProgramId) -> &Placed {
        &self.programs[program.index()]
    }

    /// Tokens that are counted: those of the largest vocabulary.
    pub(super) fn counted(&self) -> usize {
        self.counted
    }

    pub(super) fn buckets(&self, program: ProgramId) -> &Buckets {
        &self.buckets[program.index()]
    }

    pub(super) fn devices(&self) -> usize {
        self.programs.first().map_or(1, |placed| placed.placement.devices)
    }

    /// The sampler of `outputs` rows of a program's logits.
    pub(super) fn sampler_shape(&self, program: ProgramId, outputs: usize) -> SamplerShape {
        let vocab_size = self.program(program).program.vocab_size() as usize;
        SamplerShape { slots: self.slots, outputs, vocab_size, counted: self.counted }
    }

    pub(super) fn compiles_in_traffic(&self) -> u64 {
        self.compiles_in_traffic
    }

    /// Prepares every module that a batch within the limits can need.
    pub(super) fn warm_up(&mut self, progress: &mut dyn Progress) -> Result<(), BackendError> {
        let mut keys = vec![Key::FreshCounts, Key::SetPages, Key::SetCounts];
        let mut samplers = BTreeSet::new();
        for (index, (placed, buckets)) in (0..).zip(self.programs.iter().zip(&self.buckets)) {
            let program = ProgramId(index);
            let groups = (0..placed.program.groups().len()).map(|group| GroupId(group as u8));
            keys.push(Key::Fresh(program));
            keys.extend(groups.map(|group| Key::CopyPage(program, group)));
            keys.extend(buckets.all().iter().map(|&shape| Key::Step(program, shape)));
            let outputs = buckets.outputs().into_iter();
            samplers.extend(outputs.map(|outputs| self.sampler_shape(program, outputs)));
        }
        keys.extend(samplers.into_iter().map(Key::Sampler));
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

    pub(super) fn fresh(&mut self, program: ProgramId) -> Result<&LoadedExecutable, BackendError> {
        self.module(Key::Fresh(program))
    }

    pub(super) fn fresh_counts(&mut self) -> Result<&LoadedExecutable, BackendError> {
        self.module(Key::FreshCounts)
    }

    pub(super) fn set_pages(&mut self) -> Result<&LoadedExecutable, BackendError> {
        self.module(Key::SetPages)
    }

    pub(super) fn set_counts(&mut self) -> Result<&LoadedExecutable, BackendError> {
        self.module(Key::SetCounts)
    }

    /// Of a program's own group.
    pub(super) fn copy_page(
        &mut self,
        program: ProgramId,
        group: GroupId,
    ) -> Result<&LoadedExecutable, BackendError> {
        self.module(Key::CopyPage(program, group))
    }

    pub(super) fn step(
        &mut self,
        program: ProgramId,
        shape: StepShape,
    ) -> Result<&LoadedExecutable, BackendError> {
        self.module(Key::Step(program, shape))
    }

    pub(super) fn sampler(&mut self, shape: SamplerShape) -> Result<&Sampler, BackendError> {
        if !self.samplers.contains_key(&shape) {
            let key = Key::Sampler(shape);
            let executable = self.prepare_in_traffic(key)?;
            self.add(key, executable)?;
        }
        Ok(&self.samplers[&shape])
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
        let devices = self.devices();
        Ok(match key {
            Key::Fresh(program) => state::fresh(self.program(program)),
            Key::FreshCounts => state::fresh_counts(self.slots, self.counted, devices),
            // All tables are of one size.
            Key::SetPages => state::set_pages(&self.program(ProgramId(0)).geometry, devices),
            Key::SetCounts => state::set_counts(self.slots, self.counted, devices),
            Key::CopyPage(program, group) => state::copy_page(self.program(program), group),
            Key::Step(program, shape) => step::step(self.program(program), shape)?,
            Key::Sampler(shape) => sampler::sampler(shape, devices),
        })
    }

    /// An executable is ready from here on.
    fn add(&mut self, key: Key, executable: LoadedExecutable) -> Result<(), BackendError> {
        let Key::Sampler(shape) = key else {
            self.ready.insert(key, executable);
            return Ok(());
        };
        let (client, devices) = (self.compiler.client(), self.devices());
        let SamplerShape { outputs, vocab_size, .. } = shape;
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
        self.samplers.insert(shape, sampler);
        Ok(())
    }
}
