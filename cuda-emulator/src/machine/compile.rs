//! Instructions to closures: a kernel and the functions that it calls become one list of steps.

use std::collections::{HashMap, HashSet};

use crate::count::Class;
use crate::ptx::{
    Function, Instruction, Module, Operand, PtxError, PtxProblem, Space, Statement, Variable,
};

use super::action::{Action, NOWHERE, Origin, Step};
use super::calls::CallGraph;
use super::control::find_joins;
use super::form::{Form, Uses};
use super::kernel::{Kernel, Parameter};
use super::names::{Names, Register, Symbol, Width};
use super::ops;
use super::stack::{Frame, LaterFrame, STACK_LIMIT, address_of};

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
        graph: CallGraph::new(module),
        frames: HashMap::new(),
        frame_bytes: None,
    };
    compiler.prepare_recursion()?;
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

pub(super) struct Compiler<'a> {
    pub(super) names: Names<'a>,
    pub(super) steps: Vec<Step>,
    origins: Vec<Origin>,
    /// Of each step, what registers it uses.
    uses: Vec<Uses>,
    /// Calls whose entry is not known yet: the step and the callee.
    pub(super) calls: Vec<(usize, String)>,
    entries: HashMap<String, u32>,
    pub(super) graph: CallGraph,
    /// Of functions that may be active more than once.
    pub(super) frames: HashMap<String, LaterFrame>,
    /// Bytes of the current function's frame, if it has one.
    frame_bytes: Option<u64>,
}

/// Labels of a function, under the scope that they stand in, and the branches to them.
#[derive(Default)]
pub(super) struct Labels {
    known: HashMap<(u32, String), u32>,
    /// Sizes of results and parameters of functions that are called through pointers.
    pub(super) prototypes: HashMap<String, (Vec<u64>, Vec<u64>)>,
    pub(super) tables: HashMap<(u32, String), Vec<String>>,
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
        while let Some((step, callee)) = self.calls.get(done).cloned() {
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
        Ok(())
    }

    fn function(&mut self, function: &Function) -> Result<(), PtxError> {
        let Some(body) = &function.body else {
            return Err(PtxProblem::External(function.name.clone()).at(function.line));
        };
        self.names.enter(function)?;
        let before = self.begin_frame(&function.name);
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
                Statement::Prototype(name, results, parameters) => {
                    let sizes = (results.clone(), parameters.clone());
                    labels.prototypes.insert(name.clone(), sizes);
                }
                Statement::Variable(variable) if variable.space == Space::Local => {
                    self.local_variable(variable, line)?;
                }
                Statement::Variable(variable) => self.names.variable(variable, line)?,
                Statement::Instruction(instruction) => {
                    line = instruction.line;
                    self.instruction(instruction, &function.name, &mut labels)?;
                }
            }
        }
        // A body may end without `ret`.
        self.push_step(Action::Return, None, Class::Control, None);
        self.end_frame(function, before)?;
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

    /// Makes room for frames, if any function may be active more than once.
    fn prepare_recursion(&mut self) -> Result<(), PtxError> {
        if !self.graph.has_recursion() {
            return Ok(());
        }
        // Frames come first, so that their addresses are known.
        self.names.local.place(STACK_LIMIT as u64, 16);
        // What a function holds must not enclose the parameters of others.
        for function in self.names.module().functions.iter().filter(|f| !f.is_kernel) {
            self.names.signature(function)?;
            if self.graph.is_recursive(&function.name) {
                self.frames.insert(function.name.clone(), LaterFrame::default());
            }
        }
        Ok(())
    }

    /// Where the function's registers, predicates and local memory begin.
    fn begin_frame(&mut self, name: &str) -> [usize; 4] {
        self.frame_bytes = self.frames.contains_key(name).then_some(0);
        let names = &self.names;
        let local = names.local.bytes as usize;
        [names.template.len(), names.widths.len(), names.predicates as usize, local]
    }

    fn end_frame(
        &mut self,
        function: &Function,
        [row, width, predicate, local]: [usize; 4],
    ) -> Result<(), PtxError> {
        let Some(later) = self.frames.get(&function.name) else { return Ok(()) };
        let signature = self.names.signature(function)?;
        let parameters = signature.parameters.iter();
        let mut locals: Vec<_> =
            parameters.map(|(at, bytes)| *at as usize..(at + bytes) as usize).collect();
        locals.push(local..self.names.local.bytes as usize);
        let frame = Frame {
            rows: row..self.names.template.len(),
            widths: self.names.widths.get(width..).unwrap_or(&[]).to_vec(),
            predicates: predicate..self.names.predicates as usize,
            locals,
            bytes: self.frame_bytes.unwrap_or(0).next_multiple_of(16) as usize,
        };
        // A function is compiled once.
        _ = later.set(frame);
        Ok(())
    }

    /// A local variable; in a frame its address is put into a register.
    fn local_variable(&mut self, variable: &Variable, line: u32) -> Result<(), PtxError> {
        let Some(bytes) = &mut self.frame_bytes else { return self.names.variable(variable, line) };
        let at = bytes.next_multiple_of(variable.align.max(1));
        *bytes = at.saturating_add(variable.bytes);
        if *bytes > STACK_LIMIT as u64 {
            let (what, value, limit) = ("a frame", *bytes, STACK_LIMIT as u64);
            return Err(PtxProblem::TooLarge { what, value, limit }.at(line));
        }
        let row = self.names.wide_register();
        let register = Register { row, width: Width::Double };
        self.names.declare(&variable.name, Symbol::Register(register), line)?;
        self.push_step(address_of(row, at), None, Class::Move, None);
        Ok(())
    }

    pub(super) fn push_step(
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
            "call" => return self.call(instruction, guard, function, labels),
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
}
