//! Instructions to closures: a kernel and the functions that it calls become one list of steps.

use std::collections::{HashMap, HashSet};

use crate::count::Class;
use crate::ptx::{Function, Instruction, Module, Operand, PtxError, PtxProblem, Statement};

use super::action::{Action, NOWHERE, Origin, Step};
use super::context::lanes;
use super::control::find_joins;
use super::form::{Form, Uses};
use super::kernel::{Kernel, Parameter};
use super::names::{Names, Symbol};
use super::ops;

/// The most shared memory that variables can take; more is only had from the launch.
const STATIC_SHARED_LIMIT: u64 = 48 << 10;

pub(crate) fn compile(
    module: &Module,
    variables: &HashMap<String, u64>,
    kernel: &Function,
) -> Result<Kernel, PtxError> {
    let mut compiler = Compiler {
        names: Names::new(module, variables),
        steps: Vec::new(),
        origins: Vec::new(),
        uses: Vec::new(),
        calls: Vec::new(),
        entries: HashMap::new(),
        callers: HashSet::new(),
    };
    compiler.function(kernel)?;
    let registers = compiler.names.declared;
    let parameters = compiler.parameters(kernel);
    compiler.called_functions()?;
    let mut entries: Vec<u32> = compiler.entries.values().copied().collect();
    entries.push(0);
    find_joins(&mut compiler.steps, &entries);
    let watched = compiler.watch_wgmma();
    let (dynamic_base, static_shared) = compiler.names.place_dynamic();
    if static_shared > STATIC_SHARED_LIMIT {
        let (what, value) = ("static shared memory", static_shared);
        let limit = STATIC_SHARED_LIMIT;
        return Err(PtxProblem::TooLarge { what, value, limit }.at(kernel.line));
    }
    let (gaps, gap_owners) = std::mem::take(&mut compiler.names.shared.gaps).into_iter().unzip();
    Ok(Kernel {
        name: kernel.name.clone(),
        steps: compiler.steps,
        origins: compiler.origins,
        files: module.files.clone(),
        predicates: compiler.names.predicates,
        specials: compiler.names.specials.iter().map(|(special, row)| (*special, *row)).collect(),
        parameters,
        parameter_bytes: compiler.names.parameters.bytes as usize,
        static_shared: static_shared as usize,
        dynamic_base: dynamic_base as usize,
        gaps,
        gap_owners,
        watched,
        cluster: kernel.cluster,
        local_bytes: compiler.names.local.bytes.next_multiple_of(16) as usize,
        max_threads: kernel.max_threads,
        registers,
        template: compiler.names.template,
    })
}

struct Compiler<'a> {
    names: Names<'a>,
    steps: Vec<Step>,
    origins: Vec<Origin>,
    /// Of each step, what registers it uses.
    uses: Vec<Uses>,
    /// Calls whose entry is not known yet: the step, the caller and the callee.
    calls: Vec<(usize, String, String)>,
    entries: HashMap<String, u32>,
    callers: HashSet<(String, String)>,
}

/// Labels of a function, under the scope that they stand in, and the branches to them.
#[derive(Default)]
struct Labels {
    known: HashMap<(u32, String), u32>,
    tables: HashMap<(u32, String), Vec<String>>,
    branches: Vec<Pending>,
    /// Scopes around the current place, innermost last.
    chain: Vec<u32>,
    scopes: u32,
}

struct Pending {
    step: usize,
    chain: Vec<u32>,
    label: String,
    line: u32,
    is_table: bool,
}

impl Compiler<'_> {
    fn parameters(&self, kernel: &Function) -> Vec<Parameter> {
        let mut layout = super::names::Layout::default();
        kernel
            .parameters
            .iter()
            .map(|parameter| Parameter {
                name: parameter.name.clone(),
                offset: layout.place(parameter.bytes, parameter.align) as usize,
                bytes: parameter.bytes as usize,
            })
            .collect()
    }

    /// Compiles what the kernel calls, and what that calls.
    fn called_functions(&mut self) -> Result<(), PtxError> {
        let mut done = 0;
        while let Some((step, _, callee)) = self.calls.get(done).cloned() {
            done += 1;
            let entry = match self.entries.get(&callee) {
                Some(entry) => *entry,
                None => {
                    let line = self.origins.get(step).map_or(0, |origin| origin.line);
                    let function = self
                        .names
                        .function(&callee)
                        .ok_or_else(|| PtxProblem::Unknown(callee.clone()).at(line))?;
                    let entry = self.steps.len() as u32;
                    self.entries.insert(callee.clone(), entry);
                    self.function(function)?;
                    entry
                }
            };
            if let Some(step) = self.steps.get_mut(step) {
                step.action = Action::Call { entry };
            }
        }
        self.refuse_recursion()
    }

    /// Registers and local memory of a function exist once, so it can't be active twice.
    fn refuse_recursion(&self) -> Result<(), PtxError> {
        for name in self.entries.keys() {
            let mut seen = HashSet::new();
            let mut open: Vec<&str> = vec![name];
            while let Some(caller) = open.pop() {
                for (_, callee) in self.callers.iter().filter(|(from, _)| from == caller) {
                    if callee == name {
                        let line = self.names.function(name).map_or(0, |function| function.line);
                        return Err(PtxProblem::Recursion(name.clone()).at(line));
                    }
                    if seen.insert(callee.as_str()) {
                        open.push(callee);
                    }
                }
            }
        }
        Ok(())
    }

    fn function(&mut self, function: &Function) -> Result<(), PtxError> {
        let Some(body) = &function.body else {
            return Err(PtxProblem::External(function.name.clone()).at(function.line));
        };
        self.names.enter(function)?;
        let mut labels = Labels { chain: vec![0], ..Labels::default() };
        let mut line = function.line;
        for statement in body {
            match statement {
                Statement::Open => {
                    self.names.open();
                    labels.scopes += 1;
                    labels.chain.push(labels.scopes);
                }
                Statement::Close => {
                    self.names.close();
                    labels.chain.pop();
                }
                Statement::Label(name) => {
                    let key = (labels.chain.last().copied().unwrap_or(0), name.clone());
                    if labels.known.insert(key, self.steps.len() as u32).is_some() {
                        return Err(PtxProblem::Twice(name.clone()).at(line));
                    }
                }
                Statement::Targets(name, targets) => {
                    let key = (labels.chain.last().copied().unwrap_or(0), name.clone());
                    labels.tables.insert(key, targets.clone());
                }
                Statement::Registers(ty, names) => self.names.registers(*ty, names, line)?,
                Statement::Variable(variable) => self.names.variable(variable, line)?,
                Statement::Instruction(instruction) => {
                    line = instruction.line;
                    self.instruction(instruction, &function.name, &mut labels)?;
                }
            }
        }
        // A body may end without `ret`.
        self.push_step(Action::Return, None, Class::Control, None);
        self.resolve(&labels)
    }

    /// Lets every step that uses a register of a `wgmma` look whether it may; gives these
    /// registers.
    fn watch_wgmma(&mut self) -> Vec<u32> {
        let mut watched: HashSet<u32> =
            self.uses.iter().filter(|uses| uses.wgmma).flat_map(|uses| uses.rows.clone()).collect();
        // A copy of a register on its way is on its way too.
        loop {
            let before = watched.len();
            for uses in self.uses.iter().filter(|uses| uses.is_copy) {
                if let [to, from] = uses.rows.as_slice()
                    && watched.contains(from)
                {
                    watched.insert(*to);
                }
            }
            if watched.len() == before {
                break;
            }
        }
        for (step, uses) in self.steps.iter_mut().zip(&self.uses) {
            if !uses.wgmma && uses.rows.iter().any(|row| watched.contains(row)) {
                let action = std::mem::replace(&mut step.action, Action::Return);
                step.action = ops::watch_registers(action, uses.clone());
            }
        }
        let mut rows: Vec<u32> = watched.into_iter().collect();
        rows.sort_unstable();
        rows
    }

    fn push_step(
        &mut self,
        action: Action,
        guard: Option<(u32, bool)>,
        class: Class,
        from: Option<&Instruction>,
    ) {
        self.steps.push(Step { action, guard, class: class as u8, join: NOWHERE });
        self.uses.push(Uses::default());
        self.origins.push(Origin {
            name: from.map_or("ret", |instruction| instruction.name.as_str()).into(),
            line: from.map_or(0, |instruction| instruction.line),
            source: from.and_then(|instruction| instruction.source),
        });
    }

    fn instruction(
        &mut self,
        instruction: &Instruction,
        function: &str,
        labels: &mut Labels,
    ) -> Result<(), PtxError> {
        let line = instruction.line;
        let guard = match &instruction.guard {
            None => None,
            Some((name, negated)) => match self.names.resolve(name) {
                Some(Symbol::Predicate(index)) => Some((index, *negated)),
                _ => return Err(PtxProblem::Unknown(name.clone()).at(line)),
            },
        };
        let mnemonic = instruction.name.split('.').next().unwrap_or_default();
        match mnemonic {
            "bra" | "brx" => return self.branch(instruction, guard, labels, mnemonic == "brx"),
            "call" => return self.call(instruction, guard, function),
            _ => {}
        }
        let op = ops::find(mnemonic)
            .ok_or_else(|| PtxProblem::Instruction(instruction.name.clone()).at(line))?;
        let mut form = Form::new(&mut self.names, instruction, op.class);
        let action = (op.compile)(&mut form)?;
        form.finish()?;
        let class = form.class;
        let uses = form.uses;
        self.push_step(action, guard, class, Some(instruction));
        if let Some(last) = self.uses.last_mut() {
            *last = uses;
        }
        Ok(())
    }

    fn branch(
        &mut self,
        instruction: &Instruction,
        guard: Option<(u32, bool)>,
        labels: &mut Labels,
        is_table: bool,
    ) -> Result<(), PtxError> {
        let mut form = Form::new(&mut self.names, instruction, Class::Control);
        form.flag("uni");
        let (index, label) = if is_table {
            if !form.flag("idx") {
                return Err(form.missing("idx"));
            }
            form.expect(2)?;
            (form.src::<u32>(0)?.row, form.operand(1)?)
        } else {
            form.expect(1)?;
            (0, form.operand(0)?)
        };
        let Operand::Name(label) = label else {
            return Err(form.operand_error(0, "must be a label"));
        };
        form.finish()?;
        labels.branches.push(Pending {
            step: self.steps.len(),
            chain: labels.chain.clone(),
            label: label.clone(),
            line: instruction.line,
            is_table,
        });
        let action = if is_table {
            Action::Table { index, targets: Box::default() }
        } else {
            Action::Branch { target: 0 }
        };
        self.push_step(action, guard, Class::Control, Some(instruction));
        Ok(())
    }

    /// Sets the targets of a function's branches.
    fn resolve(&mut self, labels: &Labels) -> Result<(), PtxError> {
        for branch in &labels.branches {
            let find = |name: &str| {
                branch
                    .chain
                    .iter()
                    .rev()
                    .find_map(|scope| labels.known.get(&(*scope, name.to_owned())))
                    .copied()
                    .ok_or_else(|| PtxProblem::Unknown(name.to_owned()).at(branch.line))
            };
            let Some(step) = self.steps.get_mut(branch.step) else { continue };
            if branch.is_table {
                let table = branch
                    .chain
                    .iter()
                    .rev()
                    .find_map(|scope| labels.tables.get(&(*scope, branch.label.clone())))
                    .ok_or_else(|| PtxProblem::Unknown(branch.label.clone()).at(branch.line))?;
                let all: Result<Box<[u32]>, _> = table.iter().map(|name| find(name)).collect();
                if let Action::Table { targets, .. } = &mut step.action {
                    *targets = all?;
                }
            } else {
                step.action = Action::Branch { target: find(&branch.label)? };
            }
        }
        Ok(())
    }

    /// A call: arguments are copied to where the function expects them, and results back.
    fn call(
        &mut self,
        instruction: &Instruction,
        guard: Option<(u32, bool)>,
        caller: &str,
    ) -> Result<(), PtxError> {
        let mut form = Form::new(&mut self.names, instruction, Class::Control);
        form.flag("uni");
        form.finish()?;
        let line = instruction.line;
        let (results, rest) = match instruction.operands.as_slice() {
            [Operand::List(results), rest @ ..] => (results.as_slice(), rest),
            rest => (&[][..], rest),
        };
        let (name, arguments) = match rest {
            [Operand::Name(name)] => (name, &[][..]),
            [Operand::Name(name), Operand::List(arguments)] => (name, arguments.as_slice()),
            _ => return Err(form.operand_error(0, "only calls of named functions are supported")),
        };
        let Some(function) = form.names.function(name) else {
            return Err(PtxProblem::External(name.clone()).at(line));
        };
        if function.body.is_none() {
            return self.call_system(instruction, guard, name, results);
        }
        let signature = self.names.signature(function)?;
        let ins = self.moves(arguments, &signature.parameters, true, line, name)?;
        let outs = self.moves(results, &signature.results, false, line, name)?;
        self.push_step(copy_local(ins), guard, Class::Control, Some(instruction));
        self.calls.push((self.steps.len(), caller.to_owned(), name.clone()));
        self.callers.insert((caller.to_owned(), name.clone()));
        self.push_step(Action::Call { entry: 0 }, guard, Class::Control, Some(instruction));
        self.push_step(copy_local(outs), guard, Class::Control, Some(instruction));
        Ok(())
    }

    /// Pairs of local memory: from, to and size.
    fn moves(
        &mut self,
        actual: &[Operand],
        formal: &[(u64, u64)],
        inward: bool,
        line: u32,
        name: &str,
    ) -> Result<Vec<(usize, usize, usize)>, PtxError> {
        let (expected, found) = (formal.len(), actual.len());
        if expected != found {
            let instruction = format!("call {name}");
            return Err(PtxProblem::Operands { instruction, expected, found }.at(line));
        }
        let mut all = Vec::new();
        for (operand, (place, bytes)) in actual.iter().zip(formal) {
            let Operand::Name(variable) = operand else {
                return Err(PtxProblem::External(name.to_owned()).at(line));
            };
            let Some(Symbol::Address(at, crate::ptx::Space::Local)) = self.names.resolve(variable)
            else {
                return Err(PtxProblem::Unknown(variable.clone()).at(line));
            };
            let (from, to) = if inward { (at, *place) } else { (*place, at) };
            all.push((from as usize, to as usize, *bytes as usize));
        }
        Ok(all)
    }

    /// Functions that the system has: `assert` stops the kernel, `printf` prints nothing.
    fn call_system(
        &mut self,
        instruction: &Instruction,
        guard: Option<(u32, bool)>,
        name: &str,
        results: &[Operand],
    ) -> Result<(), PtxError> {
        let action = match name {
            "__assertfail" => ops::assertion(),
            "vprintf" => {
                let zeros = match results {
                    [Operand::Name(result)] => match self.names.resolve(result) {
                        Some(Symbol::Address(at, _)) => Some(at as usize),
                        _ => None,
                    },
                    _ => None,
                };
                clear_local(zeros)
            }
            _ => return Err(PtxProblem::External(name.to_owned()).at(instruction.line)),
        };
        self.push_step(action, guard, Class::Control, Some(instruction));
        Ok(())
    }
}

fn copy_local(moves: Vec<(usize, usize, usize)>) -> Action {
    Action::warp(move |context, mask| {
        let stride = context.env.kernel.local_bytes;
        for lane in lanes(mask) {
            for (from, to, bytes) in &moves {
                let from = lane * stride + from;
                let to = lane * stride + to;
                if from.max(to) + bytes <= context.core.local.len() {
                    context.core.local.copy_within(from..from + bytes, to);
                }
            }
        }
        Ok(())
    })
}

fn clear_local(at: Option<usize>) -> Action {
    Action::warp(move |context, mask| {
        let stride = context.env.kernel.local_bytes;
        for lane in lanes(mask) {
            if let Some(place) =
                at.and_then(|at| context.core.local.get_mut(lane * stride + at..)?.get_mut(..4))
            {
                place.fill(0);
            }
        }
        Ok(())
    })
}
