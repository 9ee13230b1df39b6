//! Calls: of functions, through pointers, and of what the system has.

use std::collections::{HashMap, HashSet};

use crate::check::Problem;
use crate::count::Class;
use crate::ptx::{
    Function, Instruction, Module, Operand, PtxError, PtxProblem, Statement, Variable,
};

use super::action::Action;
use super::compile::{Compiler, Labels};
use super::context::{Trap, lanes};
use super::form::{Form, Predicate};
use super::names::{Symbol, function_address};
use super::ops;
use super::registers::Slot;
use super::stack::{restore, save};

/// Which functions a module's functions call.
#[derive(Debug, Default)]
pub(super) struct CallGraph {
    callees: HashMap<String, HashSet<String>>,
    /// Functions whose address is taken.
    taken: HashSet<String>,
}

impl CallGraph {
    pub(super) fn new(module: &Module) -> Self {
        let mut graph = Self::default();
        let is_function = |name: &str| {
            module.functions.iter().any(|function| function.name == name && !function.is_kernel)
        };
        let initial = module.variables.iter().flat_map(|variable| &variable.addresses);
        let initial = initial.map(|(_, name, _)| name).filter(|name| is_function(name));
        graph.taken.extend(initial.cloned());
        let mut through_pointers = Vec::new();
        for function in &module.functions {
            let callees = graph.callees.entry(function.name.clone()).or_default();
            for statement in function.body.iter().flatten() {
                let Statement::Instruction(instruction) = statement else { continue };
                let is_call = instruction.name.split('.').next() == Some("call");
                let names = instruction.operands.iter().filter_map(|operand| match operand {
                    Operand::Name(name) => Some(name),
                    _ => None,
                });
                let mut known = names.filter(|name| is_function(name)).cloned().peekable();
                if !is_call {
                    graph.taken.extend(known);
                } else if known.peek().is_some() {
                    callees.extend(known);
                } else {
                    through_pointers.push(function.name.clone());
                }
            }
            for statement in function.body.iter().flatten() {
                if let Statement::Targets(_, names) = statement {
                    graph.taken.extend(names.iter().filter(|name| is_function(name)).cloned());
                }
            }
        }
        for caller in through_pointers {
            graph.callees.entry(caller).or_default().extend(graph.taken.iter().cloned());
        }
        graph
    }

    /// Whether the function's address is taken.
    fn is_taken(&self, name: &str) -> bool {
        self.taken.contains(name)
    }

    /// Whether the function may be active more than once.
    pub(super) fn is_recursive(&self, name: &str) -> bool {
        let mut seen = HashSet::new();
        let mut open = vec![name];
        while let Some(caller) = open.pop() {
            for callee in self.callees.get(caller).into_iter().flatten() {
                if callee == name {
                    return true;
                }
                if seen.insert(callee.as_str()) {
                    open.push(callee);
                }
            }
        }
        false
    }

    pub(super) fn has_recursion(&self) -> bool {
        self.callees.keys().any(|name| self.is_recursive(name))
    }
}

impl Compiler<'_> {
    /// A call: arguments are copied to where the function expects them, and results back.
    pub(super) fn call(
        &mut self,
        instruction: &Instruction,
        guard: Option<(u32, bool)>,
        caller: &str,
        labels: &Labels,
    ) -> Result<(), PtxError> {
        let mut form = Form::new(&mut self.names, instruction, Class::Control);
        form.flag("uni");
        form.finish()?;
        let line = instruction.line;
        let (results, rest) = match instruction.operands.as_slice() {
            [Operand::List(results), rest @ ..] => (results.as_slice(), rest),
            rest => (&[][..], rest),
        };
        let (name, arguments, last) = match rest {
            [Operand::Name(name)] => (name, &[][..], None),
            [Operand::Name(name), Operand::List(arguments)] => (name, arguments.as_slice(), None),
            [Operand::Name(name), Operand::Name(last)] => (name, &[][..], Some(last)),
            [Operand::Name(name), Operand::List(arguments), Operand::Name(last)] => {
                (name, arguments.as_slice(), Some(last))
            }
            _ => return Err(form.operand_error(0, "must be a function")),
        };
        let Some(function) = form.names.function(name) else {
            let Some(last) = last else { return Err(PtxProblem::External(name.clone()).at(line)) };
            let row = match form.names.resolve(name) {
                Some(Symbol::Register(register)) if register.is_wide() => register.row,
                _ => return Err(PtxProblem::Unknown(name.clone()).at(line)),
            };
            let callees = self.candidates(last, labels, line)?;
            return self.call_pointer(
                instruction,
                guard,
                caller,
                row,
                (results, arguments),
                &callees,
            );
        };
        if function.body.is_none() {
            return self.call_system(instruction, guard, name, results);
        }
        self.call_function(instruction, guard, caller, function, (results, arguments))
    }

    /// The functions that a pointer with this list or prototype may lead to.
    fn candidates(&self, name: &str, labels: &Labels, line: u32) -> Result<Vec<usize>, PtxError> {
        let functions = &self.names.module().functions;
        let listed = labels.tables.iter().find(|((_, label), _)| label == name);
        let prototype = labels.prototypes.get(name);
        let sizes = |variables: &[Variable]| -> Vec<u64> {
            variables.iter().map(|variable| variable.bytes).collect()
        };
        let fits = |function: &Function| match (listed, prototype) {
            (Some((_, names)), _) => names.contains(&function.name),
            (None, Some((results, parameters))) => {
                self.graph.is_taken(&function.name)
                    && *results == sizes(&function.results)
                    && *parameters == sizes(&function.parameters)
            }
            (None, None) => false,
        };
        if listed.is_none() && prototype.is_none() {
            return Err(PtxProblem::Unknown(name.to_owned()).at(line));
        }
        let fits = |function: &Function| function.body.is_some() && fits(function);
        Ok(functions.iter().enumerate().filter(|(_, f)| fits(f)).map(|(at, _)| at).collect())
    }

    /// A call through a pointer: a call of each function for the lanes that want it.
    fn call_pointer(
        &mut self,
        instruction: &Instruction,
        guard: Option<(u32, bool)>,
        caller: &str,
        row: u32,
        lists: (&[Operand], &[Operand]),
        callees: &[usize],
    ) -> Result<(), PtxError> {
        let pointer: Slot<u64> = Slot::new(row);
        let known: Vec<u64> = callees.iter().map(|at| function_address(*at)).collect();
        let check = Action::warp(move |context, mask| {
            let addresses = context.core.registers.get(pointer);
            match lanes(mask).find(|lane| !known.contains(&addresses[*lane])) {
                Some(lane) => {
                    let address = addresses[lane];
                    Err(Trap::lane(lane, Problem::CallTarget { address }))
                }
                None => Ok(()),
            }
        });
        self.push_step(check, guard, Class::Control, Some(instruction));
        let functions = &self.names.module().functions;
        for function in callees.iter().filter_map(|at| functions.get(*at).map(|f| (*at, f))) {
            let (at, function) = function;
            let address = function_address(at);
            let predicate = self.names.predicate();
            let wanted = guard.map(|(index, negated)| Predicate { index, negated });
            let choose = Action::lanes(move |registers, mask| {
                let these = registers.test2((pointer, pointer), |a, _| a == address);
                let these = these & wanted.map_or(u32::MAX, |wanted| wanted.lanes(registers));
                registers.set_predicate(predicate as usize, these, mask);
            });
            self.push_step(choose, None, Class::Predicate, Some(instruction));
            self.call_function(instruction, Some((predicate, false)), caller, function, lists)?;
        }
        Ok(())
    }

    fn call_function(
        &mut self,
        instruction: &Instruction,
        guard: Option<(u32, bool)>,
        caller: &str,
        function: &Function,
        (results, arguments): (&[Operand], &[Operand]),
    ) -> Result<(), PtxError> {
        let (line, name) = (instruction.line, &function.name);
        let signature = self.names.signature(function)?;
        let ins = self.moves(arguments, &signature.parameters, true, line, name)?;
        let outs = self.moves(results, &signature.results, false, line, name)?;
        // A call may change the predicate that guards it, so lanes without it go round.
        let branch = guard.map(|(index, negated)| {
            let action = Action::Branch { target: 0 };
            self.push_step(action, Some((index, !negated)), Class::Control, Some(instruction));
            self.steps.len() - 1
        });
        let frame = self.frames.get(caller).cloned();
        if let Some(frame) = &frame {
            self.push_step(save(frame), None, Class::Control, Some(instruction));
        }
        self.push_step(copy_local(ins), None, Class::Control, Some(instruction));
        self.calls.push((self.steps.len(), name.clone()));
        self.push_step(Action::Call { entry: 0 }, None, Class::Control, Some(instruction));
        if let Some(frame) = &frame {
            self.push_step(restore(frame), None, Class::Control, Some(instruction));
        }
        self.push_step(copy_local(outs), None, Class::Control, Some(instruction));
        let after = self.steps.len() as u32;
        if let Some(step) = branch.and_then(|branch| self.steps.get_mut(branch)) {
            step.action = Action::Branch { target: after };
        }
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
