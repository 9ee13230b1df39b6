//! An instruction as it is compiled: its modifiers, its operands, and what becomes of them.

use crate::count::Class;
use crate::ptx::{Instruction, Operand, PtxError, PtxProblem, Space, Type};

use super::action::{Action, Address};
use super::float::Rounding;
use super::names::{Names, Register, Special, Symbol, Width};
use super::registers::{Lane, Registers, Slot};

/// Reads an instruction's modifiers and operands, and builds its effect. Modifiers that nobody
/// asked for make the instruction unknown: nothing is passed over silently.
#[derive(Debug)]
pub(crate) struct Form<'f, 'n> {
    pub(crate) names: &'f mut Names<'n>,
    pub(crate) instruction: &'f Instruction,
    modifiers: Vec<&'f str>,
    used: Vec<bool>,
    pub(crate) class: Class,
    /// What registers it uses.
    pub(crate) uses: Uses,
}

/// What registers an instruction uses.
#[derive(Debug, Clone, Default)]
pub(crate) struct Uses {
    /// Their rows, in the order of the operands. Of a `wgmma`, only those of its matrices.
    pub(crate) rows: Vec<u32>,
    /// Whether it copies one register to another, as compilers do in any place.
    pub(crate) is_copy: bool,
    pub(crate) wgmma: bool,
}

/// A predicate as an operand.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Predicate {
    pub(crate) index: u32,
    pub(crate) negated: bool,
}

impl Predicate {
    /// The lanes for which it holds.
    #[inline(always)]
    pub(crate) fn lanes(self, registers: &Registers) -> u32 {
        let bits = registers.predicates[self.index as usize];
        if self.negated { !bits } else { bits }
    }
}

impl<'f, 'n> Form<'f, 'n> {
    pub(crate) fn new(
        names: &'f mut Names<'n>,
        instruction: &'f Instruction,
        class: Class,
    ) -> Self {
        let modifiers: Vec<_> = instruction.name.split('.').skip(1).collect();
        let used = vec![false; modifiers.len()];
        let is_copy = instruction.name.starts_with("mov.");
        let uses = Uses { is_copy, ..Uses::default() };
        Self { names, instruction, modifiers, used, class, uses }
    }

    /// Fails if a modifier was not used.
    pub(crate) fn finish(&self) -> Result<(), PtxError> {
        match self.used.iter().position(|used| !used) {
            None => Ok(()),
            Some(index) => {
                let modifier = self.modifiers.get(index).copied().unwrap_or_default();
                Err(self.unknown(modifier))
            }
        }
    }

    pub(crate) fn unknown(&self, modifier: &str) -> PtxError {
        let instruction = self.instruction.name.clone();
        self.problem(PtxProblem::Modifier { instruction, modifier: modifier.to_owned() })
    }

    pub(crate) fn missing(&self, what: &'static str) -> PtxError {
        let instruction = self.instruction.name.clone();
        self.problem(PtxProblem::Missing { instruction, what })
    }

    pub(crate) fn bad_type(&self, ty: Type) -> PtxError {
        self.unknown(&format!("{ty:?}").to_lowercase())
    }

    pub(crate) fn problem(&self, problem: PtxProblem) -> PtxError {
        problem.at(self.instruction.line)
    }

    pub(crate) fn operand_error(&self, index: usize, reason: impl Into<String>) -> PtxError {
        let instruction = self.instruction.name.clone();
        self.problem(PtxProblem::Operand { instruction, index, reason: reason.into() })
    }

    // Modifiers.

    /// Whether the modifier is there.
    pub(crate) fn flag(&mut self, name: &str) -> bool {
        let found = self.modifiers.iter().zip(&self.used).position(|(m, used)| !used && *m == name);
        if let Some(used) = found.and_then(|index| self.used.get_mut(index)) {
            *used = true;
        }
        found.is_some()
    }

    /// Uses up modifiers that change nothing here, such as cache hints.
    pub(crate) fn ignore(&mut self, names: &[&str]) {
        for (modifier, used) in self.modifiers.iter().zip(&mut self.used) {
            *used |= names.contains(modifier)
                || modifier.starts_with("L1::")
                || modifier.starts_with("L2::");
        }
    }

    /// The first of the choices that is there.
    pub(crate) fn choice<T: Copy>(&mut self, choices: &[(&str, T)]) -> Option<T> {
        choices.iter().find(|(name, _)| self.flag(name)).map(|(_, value)| *value)
    }

    /// The next type.
    pub(crate) fn ty(&mut self) -> Result<Type, PtxError> {
        let next = self
            .modifiers
            .iter()
            .enumerate()
            .filter(|(index, _)| self.used.get(*index) == Some(&false))
            .find_map(|(index, name)| Type::parse(name).map(|ty| (index, ty)));
        let Some((index, ty)) = next else { return Err(self.missing("a type")) };
        if let Some(used) = self.used.get_mut(index) {
            *used = true;
        }
        if self.class == Class::Integer && ty.is_float() {
            self.class = Class::Float;
        }
        Ok(ty)
    }

    pub(crate) fn rounding(&mut self) -> Option<Rounding> {
        self.choice(&[
            ("rn", Rounding::Nearest),
            ("rz", Rounding::Zero),
            ("rm", Rounding::Down),
            ("rp", Rounding::Up),
        ])
    }

    pub(crate) fn space(&mut self) -> Space {
        let found = self
            .modifiers
            .iter()
            .enumerate()
            .find_map(|(index, name)| Space::parse(name).map(|space| (index, space)));
        match found {
            Some((index, space)) => {
                if let Some(used) = self.used.get_mut(index) {
                    *used = true;
                }
                space
            }
            None => Space::Generic,
        }
    }

    // Operands.

    pub(crate) fn count(&self) -> usize {
        self.instruction.operands.len()
    }

    /// Fails unless there are `expected` operands.
    pub(crate) fn expect(&self, expected: usize) -> Result<(), PtxError> {
        let found = self.count();
        if found == expected {
            return Ok(());
        }
        let instruction = self.instruction.name.clone();
        Err(self.problem(PtxProblem::Operands { instruction, expected, found }))
    }

    pub(crate) fn operand(&self, index: usize) -> Result<&'f Operand, PtxError> {
        self.instruction.operands.get(index).ok_or_else(|| {
            let instruction = self.instruction.name.clone();
            let found = self.count();
            self.problem(PtxProblem::Operands { instruction, expected: index + 1, found })
        })
    }

    fn symbol(&mut self, name: &str) -> Result<Symbol, PtxError> {
        self.names.resolve(name).ok_or_else(|| self.problem(PtxProblem::Unknown(name.to_owned())))
    }

    /// A register of any width that is written.
    pub(crate) fn target(&mut self, index: usize, operand: &Operand) -> Result<Register, PtxError> {
        let Operand::Name(name) = operand else {
            return Err(self.operand_error(index, "must be a register"));
        };
        let is_special = Special::is_name(name) && !self.names.is_declared(name);
        match self.symbol(name)? {
            Symbol::Register(register) if !is_special => {
                self.uses.rows.push(register.row);
                Ok(register)
            }
            _ => Err(self.operand_error(index, format!("{name} can't be written"))),
        }
    }

    /// A register that `T` is written to, or none for `_`.
    pub(crate) fn optional_target<T: Lane>(
        &mut self,
        index: usize,
        operand: &Operand,
    ) -> Result<Option<Slot<T>>, PtxError> {
        if *operand == Operand::Name("_".to_owned()) {
            return Ok(None);
        }
        let register = self.target(index, operand)?;
        self.fits::<T>(index, register).map(Some)
    }

    fn fits<T: Lane>(&self, index: usize, register: Register) -> Result<Slot<T>, PtxError> {
        let bytes = match register.width {
            Width::Half => 2,
            Width::Word => 4,
            Width::Double => 8,
        };
        if bytes == T::BYTES {
            return Ok(Slot::new(register.row));
        }
        let reason = format!("a register of {bytes} bytes where {} are needed", T::BYTES);
        Err(self.operand_error(index, reason))
    }

    /// Operand `index`: a register that `T` is written to.
    pub(crate) fn dst<T: Lane>(&mut self, index: usize) -> Result<Slot<T>, PtxError> {
        let operand = self.operand(index)?;
        let register = self.target(index, operand)?;
        self.fits(index, register)
    }

    /// Operand `index`: a register or constant that `T` is read from.
    pub(crate) fn src<T: Lane>(&mut self, index: usize) -> Result<Slot<T>, PtxError> {
        let operand = self.operand(index)?;
        self.source(index, operand)
    }

    pub(crate) fn source<T: Lane>(
        &mut self,
        index: usize,
        operand: &Operand,
    ) -> Result<Slot<T>, PtxError> {
        let register = self.source_of(index, operand, T::BYTES)?;
        self.fits(index, register)
    }

    /// A register, or a constant of `bytes`.
    pub(crate) fn source_of(
        &mut self,
        index: usize,
        operand: &Operand,
        bytes: usize,
    ) -> Result<Register, PtxError> {
        let wide = bytes == 8;
        let bits = match operand {
            Operand::Name(name) if self.names.is_dynamic(name) => {
                let row = self.names.dynamic_shared(wide, 0);
                return Ok(constant_register(row, bytes));
            }
            Operand::Sum(name, offset) if self.names.is_dynamic(name) => {
                let row = self.names.dynamic_shared(wide, *offset);
                return Ok(constant_register(row, bytes));
            }
            Operand::Name(name) => match self.symbol(name)? {
                Symbol::Register(register) => {
                    self.uses.rows.push(register.row);
                    return Ok(register);
                }
                Symbol::Address(at, _) => at,
                Symbol::Predicate(_) => {
                    return Err(self.operand_error(index, "a predicate where a value is needed"));
                }
            },
            Operand::Sum(name, offset) => match self.symbol(name)? {
                Symbol::Address(at, _) => at.wrapping_add_signed(*offset),
                _ => return Err(self.operand_error(index, "only addresses can be added to")),
            },
            Operand::Integer(value) => *value as u64,
            Operand::Single(bits) if wide => f64::from(f32::from_bits(*bits)).to_bits(),
            Operand::Single(bits) => u64::from(*bits),
            Operand::Double(bits) if wide => *bits,
            Operand::Double(bits) => u64::from((f64::from_bits(*bits) as f32).to_bits()),
            _ => return Err(self.operand_error(index, "must be a register or a number")),
        };
        let bits = if bytes <= 2 { bits & 0xffff } else { bits };
        Ok(constant_register(self.names.constant(bits, wide), bytes))
    }

    /// The elements of `{a, b}`, or the operand itself.
    pub(crate) fn vector(&self, index: usize) -> Result<&'f [Operand], PtxError> {
        Ok(match self.operand(index)? {
            Operand::Vector(elements) => elements,
            one => std::slice::from_ref(one),
        })
    }

    /// Operand `index` as exactly `N` registers or constants.
    pub(crate) fn sources<T: Lane, const N: usize>(
        &mut self,
        index: usize,
    ) -> Result<[Slot<T>; N], PtxError> {
        let elements = self.elements::<N>(index)?;
        let mut all = [Slot::new(0); N];
        for (slot, element) in all.iter_mut().zip(elements) {
            *slot = self.source(index, element)?;
        }
        Ok(all)
    }

    /// Operand `index` as exactly `N` registers to write.
    pub(crate) fn targets<T: Lane, const N: usize>(
        &mut self,
        index: usize,
    ) -> Result<[Slot<T>; N], PtxError> {
        let elements = self.elements::<N>(index)?;
        let mut all = [Slot::new(0); N];
        for (slot, element) in all.iter_mut().zip(elements) {
            let register = self.target(index, element)?;
            *slot = self.fits(index, register)?;
        }
        Ok(all)
    }

    fn elements<const N: usize>(&self, index: usize) -> Result<&'f [Operand], PtxError> {
        let elements = self.vector(index)?;
        if elements.len() != N {
            let reason = format!("{} elements instead of {N}", elements.len());
            return Err(self.operand_error(index, reason));
        }
        Ok(elements)
    }

    /// Operand `index`: a predicate that is read.
    pub(crate) fn predicate(&mut self, index: usize) -> Result<Predicate, PtxError> {
        let (name, negated) = match self.operand(index)? {
            Operand::Name(name) => (name, false),
            Operand::Not(name) => (name, true),
            _ => return Err(self.operand_error(index, "must be a predicate")),
        };
        match self.symbol(name)? {
            Symbol::Predicate(index) => Ok(Predicate { index, negated }),
            _ => Err(self.operand_error(index, format!("{name} is not a predicate"))),
        }
    }

    /// A predicate that is written; none for `_`.
    pub(crate) fn predicate_target(
        &mut self,
        index: usize,
        operand: &Operand,
    ) -> Result<Option<u32>, PtxError> {
        match operand {
            Operand::Name(name) if name == "_" => Ok(None),
            Operand::Name(name) => match self.symbol(name)? {
                Symbol::Predicate(index) => Ok(Some(index)),
                _ => Err(self.operand_error(index, format!("{name} is not a predicate"))),
            },
            _ => Err(self.operand_error(index, "must be a predicate")),
        }
    }

    /// Operand `index` as an address in `space`, with the space where it really is: parameters of
    /// functions are local memory.
    pub(crate) fn address(
        &mut self,
        index: usize,
        space: Space,
    ) -> Result<(Address, Space), PtxError> {
        if !self.coordinates(index)?.is_empty() {
            return Err(self.operand_error(index, "coordinates are not expected here"));
        }
        self.base(index, space)
    }

    /// The coordinates that stand in brackets with an address.
    pub(crate) fn coordinates(&self, index: usize) -> Result<&'f [Operand], PtxError> {
        match self.operand(index)? {
            Operand::Address { coordinates, .. } => Ok(coordinates),
            _ => Err(self.operand_error(index, "must be an address")),
        }
    }

    /// Operand `index` as an address, coordinates aside.
    pub(crate) fn base(
        &mut self,
        index: usize,
        space: Space,
    ) -> Result<(Address, Space), PtxError> {
        let Operand::Address { base, offset, .. } = self.operand(index)? else {
            return Err(self.operand_error(index, "must be an address"));
        };
        let mut actual = match space {
            Space::Param if !self.names.in_kernel => Space::Local,
            Space::Const => Space::Global,
            other => other,
        };
        let (row, wide) = match base.as_ref() {
            Operand::Name(name) if self.names.is_dynamic(name) => {
                let row = self.names.dynamic_shared(true, 0);
                if actual == Space::Generic {
                    actual = Space::Shared;
                }
                (row, true)
            }
            Operand::Name(name) => match self.symbol(name)? {
                Symbol::Register(register) if register.width != Width::Half => {
                    (register.row, register.is_wide())
                }
                Symbol::Address(at, found) => {
                    let found = if found == Space::Const { Space::Global } else { found };
                    if matches!(space, Space::Param | Space::Generic) {
                        actual = found;
                    } else if found != actual {
                        return Err(self.operand_error(index, format!("{name} is elsewhere")));
                    }
                    (self.names.constant(at, true), true)
                }
                _ => return Err(self.operand_error(index, "must be an address")),
            },
            Operand::Integer(value) => (self.names.constant(*value as u64, true), true),
            _ => return Err(self.operand_error(index, "must be an address")),
        };
        Ok((Address { row, wide, offset: *offset }, actual))
    }

    /// Operand `index`: a number known when the kernel is compiled.
    pub(crate) fn number(&self, index: usize) -> Result<i64, PtxError> {
        match self.operand(index)? {
            Operand::Integer(value) => Ok(*value),
            _ => Err(self.operand_error(index, "must be a number")),
        }
    }

    // Effects of the usual shapes.

    /// `d = f(a)`.
    pub(crate) fn unary<A: Lane, D: Lane>(
        &mut self,
        f: impl Fn(A) -> D + Copy + Send + Sync + 'static,
    ) -> Result<Action, PtxError> {
        self.expect(2)?;
        let slots = (self.dst::<D>(0)?, self.src::<A>(1)?);
        Ok(Action::lanes(move |registers, mask| registers.map1(mask, slots, f)))
    }

    /// `d = f(a, b)`.
    pub(crate) fn binary<A: Lane, B: Lane, D: Lane>(
        &mut self,
        f: impl Fn(A, B) -> D + Copy + Send + Sync + 'static,
    ) -> Result<Action, PtxError> {
        self.expect(3)?;
        let slots = (self.dst::<D>(0)?, self.src::<A>(1)?, self.src::<B>(2)?);
        Ok(Action::lanes(move |registers, mask| registers.map2(mask, slots, f)))
    }

    /// `d = f(a, b, c)`.
    pub(crate) fn ternary<A: Lane, B: Lane, C: Lane, D: Lane>(
        &mut self,
        f: impl Fn(A, B, C) -> D + Copy + Send + Sync + 'static,
    ) -> Result<Action, PtxError> {
        self.expect(4)?;
        let slots = (self.dst::<D>(0)?, self.src::<A>(1)?, self.src::<B>(2)?, self.src::<C>(3)?);
        Ok(Action::lanes(move |registers, mask| registers.map3(mask, slots, f)))
    }
}

fn constant_register(row: u32, bytes: usize) -> Register {
    let width = match bytes {
        8 => Width::Double,
        4 => Width::Word,
        _ => Width::Half,
    };
    Register { row, width }
}
