//! Runs one instruction on many operands.

use cuda_emulator::check::Checks;
use cuda_emulator::{Arguments, Launch, Memory, Options, Program, launch};

/// Runs `instruction` once for each set of operands. Operand `n` is in `h{n}`, `r{n}` and `d{n}`,
/// and its lowest bit in `p{n}`; the result is what `h0`, `r0`, `d0` or `p0` holds, whichever the
/// instruction names first.
pub(crate) fn run(instruction: &str, operands: &[[u64; 4]]) -> Vec<u64> {
    let (_, names) = instruction.split_once(' ').expect("operands");
    let result = match names.trim().as_bytes()[0] {
        b'h' => "cvt.u64.u16 d0, h0;",
        b'r' => "cvt.u64.u32 d0, r0;",
        b'p' => "selp.b64 d0, 1, 0, p0;",
        _ => "",
    };
    let mut load = String::new();
    for n in 1..=4 {
        let at = 8 * (n - 1);
        load += &format!(
            "ld.global.u64 d{n}, [d8+{at}]; cvt.u32.u64 r{n}, d{n}; cvt.u16.u64 h{n}, d{n};
             and.b64 d7, d{n}, 1; setp.ne.u64 p{n}, d7, 0;\n"
        );
    }
    let text = format!(
        ".version 8.8\n.target sm_90\n.address_size 64\n
         .visible .entry k(.param .u64 out, .param .u64 in, .param .u32 count) {{
         .reg .pred p<6>; .reg .b16 h<6>; .reg .b32 r<8>; .reg .b64 d<10>;
         mov.u32 r5, %ctaid.x; mov.u32 r6, %ntid.x; mov.u32 r7, %tid.x;
         mad.lo.s32 r5, r5, r6, r7;
         ld.param.u32 r6, [count]; setp.ge.u32 p5, r5, r6; @p5 ret;
         ld.param.u64 d8, [in]; mul.wide.u32 d9, r5, 32; add.s64 d8, d8, d9;
         {load}
         mov.u64 d0, 0; mov.u32 r0, 0; mov.u16 h0, 0; setp.ne.u32 p0, 0, 0;
         {instruction};
         {result}
         ld.param.u64 d8, [out]; mul.wide.u32 d9, r5, 8; add.s64 d8, d8, d9;
         st.global.u64 [d8], d0; ret; }}"
    );
    let mut memory = Memory::default();
    crate::coverage::note(&text);
    let program =
        Program::load(&text, &mut memory).unwrap_or_else(|e| panic!("{instruction}: {e}"));
    let kernel = program.kernel("k").unwrap_or_else(|e| panic!("{instruction}: {e}"));
    let input = memory.upload(operands).expect("memory");
    let out = memory.allocate(8 * operands.len() as u64).expect("memory");
    let arguments = Arguments::new().with(out).with(input).with(operands.len() as u32);
    let blocks = (operands.len() as u32).div_ceil(128).max(1);
    let shape =
        Launch { grid: [blocks, 1, 1], block: [128, 1, 1], dynamic_shared: 0, cluster: None };
    // Division by zero is one of the cases.
    let mut checks = Checks::default();
    checks.set("division", false);
    let options = Options { checks, ..Options::default() };
    let outcome = launch(&kernel, &memory, &shape, arguments.bytes(), &options).expect("a launch");
    assert_eq!(outcome.errors().count(), 0, "{instruction}: {:?}", outcome.reports);
    memory.download(out, operands.len()).expect("memory")
}

/// Compares an instruction with `expected` on all combinations of the values: of one operand, of
/// two, or of three where there are few.
pub(crate) fn check(
    instruction: &str,
    values: [&[u64]; 3],
    expected: impl Fn(u64, u64, u64) -> u64,
) {
    let mut operands = Vec::new();
    for a in values[0] {
        for b in values[1] {
            for c in values[2] {
                operands.push([*a, *b, *c, 0]);
            }
        }
    }
    for (found, [a, b, c, _]) in run(instruction, &operands).into_iter().zip(&operands) {
        let wanted = expected(*a, *b, *c);
        assert_eq!(
            found, wanted,
            "{instruction}: {a:#x}, {b:#x}, {c:#x}: {found:#x} not {wanted:#x}"
        );
    }
}

pub(crate) const NONE: &[u64] = &[0];

/// Values at the edges of integers of this many bits.
pub(crate) fn edges(bits: u32) -> Vec<u64> {
    let mask = if bits == 64 { u64::MAX } else { (1 << bits) - 1 };
    let top = 1u64 << (bits - 1);
    let mut all =
        vec![0, 1, 2, 3, 7, 100, top - 1, top, top + 1, mask - 1, mask, 0x5555_5555_5555_5555];
    all.extend([0x1234_5678_9abc_def0, 31, 32, 33]);
    all.iter_mut().for_each(|value| *value &= mask);
    all
}

/// The value as a signed number of this many bits.
pub(crate) fn signed(value: u64, bits: u32) -> i128 {
    i128::from((value << (64 - bits)) as i64 >> (64 - bits))
}

/// The value as an unsigned number of this many bits.
pub(crate) fn unsigned(value: u64, bits: u32) -> i128 {
    i128::from(value << (64 - bits) >> (64 - bits))
}

/// The low bits of a number.
pub(crate) fn low(value: i128, bits: u32) -> u64 {
    (value & ((1 << bits) - 1)) as u64
}
