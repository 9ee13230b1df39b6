//! Reads what an optimized module does, as far as checks need it: which instructions, of which
//! shape. The module comes as a serialized `HloModuleProtoWithConfig`; the field numbers are those
//! of `xla/service/hlo.proto` and `xla/xla_data.proto`.

/// An instruction of an optimized module.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Instruction {
    /// Such as `all-reduce`.
    pub opcode: String,
    /// Dimensions of its result; empty for scalars and for tuples.
    pub dims: Vec<u64>,
}

/// All instructions of an optimized module, of all its computations. What is no such module yields
/// none.
pub fn instructions(module_with_config: &[u8]) -> Vec<Instruction> {
    const MODULE: u64 = 1;
    const COMPUTATIONS: u64 = 3;
    const INSTRUCTIONS: u64 = 2;
    let mut found = Vec::new();
    for module in messages(module_with_config, MODULE) {
        for computation in messages(module, COMPUTATIONS) {
            found.extend(messages(computation, INSTRUCTIONS).map(instruction));
        }
    }
    found
}

fn instruction(bytes: &[u8]) -> Instruction {
    const OPCODE: u64 = 2;
    const SHAPE: u64 = 3;
    const DIMENSIONS: u64 = 3;
    let opcode = messages(bytes, OPCODE).next().unwrap_or_default();
    let shape = messages(bytes, SHAPE).next().unwrap_or_default();
    let mut dims = Vec::new();
    for (field, value) in Fields(shape) {
        match value {
            Field::Number(number) if field == DIMENSIONS => dims.push(number),
            Field::Bytes(mut packed) if field == DIMENSIONS => {
                while let Some(number) = varint(&mut packed) {
                    dims.push(number);
                }
            }
            _ => {}
        }
    }
    Instruction { opcode: String::from_utf8_lossy(opcode).into_owned(), dims }
}

/// The values of a length-delimited field.
fn messages(bytes: &[u8], wanted: u64) -> impl Iterator<Item = &[u8]> {
    Fields(bytes).filter_map(move |(field, value)| match value {
        Field::Bytes(bytes) if field == wanted => Some(bytes),
        _ => None,
    })
}

enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message, up to the first that makes no sense.
struct Fields<'a>(&'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, Field<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let key = varint(&mut self.0)?;
        let length = match key & 7 {
            0 => return Some((key >> 3, Field::Number(varint(&mut self.0)?))),
            1 => 8,
            2 => usize::try_from(varint(&mut self.0)?).ok()?,
            5 => 4,
            _ => return None,
        };
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some((key >> 3, Field::Bytes(taken)))
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_read_from_a_module() {
        // HloModuleProtoWithConfig { hlo_module { computations { instructions { name: "a",
        // opcode: "add", shape { element_type: F32, dimensions: [2, 300] } } } } }
        let shape = [0x10, 11, 0x1a, 3, 2, 0xac, 0x02];
        let mut instruction = vec![0x0a, 1, b'a', 0x12, 3, b'a', b'd', b'd', 0x1a, 7];
        instruction.extend(shape);
        let wrap = |tag: u8, inner: &[u8]| [&[tag, inner.len() as u8], inner].concat();
        let module = wrap(0x0a, &wrap(0x1a, &wrap(0x12, &instruction)));
        let expected = Instruction { opcode: "add".to_owned(), dims: vec![2, 300] };
        assert_eq!(instructions(&module), [expected]);
    }

    #[test]
    fn damaged_modules_yield_what_can_be_read() {
        for length in 0..40u8 {
            let bytes: Vec<u8> = (0..length).map(|byte| byte.wrapping_mul(37)).collect();
            instructions(&bytes);
        }
        assert_eq!(instructions(&[0x0a, 0xff]), []);
    }
}
