//! What C++ compiles to beyond arithmetic, against the same computation in Rust.

mod support;

use cuda_emulator::{Arguments, Memory, Options, Program, Schedule};
use support::{Device, assert_clean, shape};

const LANGUAGE: &str = include_str!("../fixtures/language.ptx");
const FUNCTIONS: &str = include_str!("../fixtures/functions.ptx");

fn gcd(a: i32, b: i32) -> i32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[test]
fn functions_take_and_return_structures_in_a_part_of_a_warp() {
    let mut device = Device::new(LANGUAGE);
    let (out, wide) = (device.room::<i32>(40), device.room::<i64>(40));
    let arguments = Arguments::new().with(out).with(wide);
    assert_clean(&device.run("calls", shape([1, 1, 1], 40), &arguments, &Options::default()));
    let expected: Vec<(i32, i64)> = (0..40)
        .map(|i| {
            let (first, second) = (i * 6, i64::from(i) << 33);
            if i % 3 != 0 {
                (gcd(first, 4 + i), second * i64::from(4 + i))
            } else {
                (first, second)
            }
        })
        .collect();
    let found: Vec<(i32, i64)> =
        device.download(out, 40).into_iter().zip(device.download(wide, 40)).collect();
    assert_eq!(found, expected);
}

#[test]
fn variables_and_constants_have_their_initial_values() {
    let mut memory = Memory::default();
    let program = Program::load(LANGUAGE, &mut memory).unwrap();
    let (counter, bytes) = program.variable("counter").unwrap();
    assert_eq!(bytes, 4);
    let out = memory.allocate(64 * 4).unwrap();
    let kernel = program.kernel("constants").unwrap();
    let arguments = Arguments::new().with(out);
    let grid = shape([1, 1, 1], 64);
    for _ in 0..2 {
        let outcome =
            cuda_emulator::launch(&kernel, &memory, &grid, arguments.bytes(), &Options::default());
        assert_clean(&outcome.unwrap());
    }
    let factors = [1, 2, 3, 5, 7, 11, 13, 17];
    let expected: Vec<i32> =
        (0..64).map(|i| factors[i % 8] + i32::from(b"ulator"[i % 6])).collect();
    assert_eq!(memory.download::<i32>(out, 64).unwrap(), expected);
    assert_eq!(memory.download::<i32>(counter, 1).unwrap(), [102]);
}

#[test]
fn lanes_take_every_branch_of_a_switch() {
    let mut device = Device::new(LANGUAGE);
    let out = device.room::<i32>(64);
    let n = 1234;
    let arguments = Arguments::new().with(out).with(n);
    assert_clean(&device.run("table", shape([1, 1, 1], 64), &arguments, &Options::default()));
    let branches = [n, n * n, n - 7, n << 3, n ^ 99, n / 3, -n, n % 5, 0];
    let expected: Vec<i32> = (0..64).map(|i| branches[i % 9]).collect();
    assert_eq!(device.download::<i32>(out, 64), expected);
}

#[test]
fn local_arrays_belong_to_their_threads() {
    let mut device = Device::new(LANGUAGE);
    let out = device.room::<i32>(70);
    let arguments = Arguments::new().with(out).with(3);
    assert_clean(&device.run("local_array", shape([1, 1, 1], 70), &arguments, &Options::default()));
    let expected: Vec<i32> = (0..70)
        .map(|thread| (0..16).map(|k| thread * ((k * 5 + 3 + thread) % 16) * (k + 1)).sum())
        .collect();
    assert_eq!(device.download::<i32>(out, 70), expected);
}

#[test]
fn a_pointer_may_lead_to_any_space() {
    for (choice, factor) in [(0, 1), (1, 2), (2, 3)] {
        let mut device = Device::new(LANGUAGE);
        let out = device.room::<i32>(64);
        let arguments = Arguments::new().with(out).with(choice);
        let grid = shape([1, 1, 1], 64);
        assert_clean(&device.run("any_space", grid, &arguments, &Options::default()));
        let expected: Vec<i32> = (0..64).map(|i| i * factor + 5).collect();
        assert_eq!(device.download::<i32>(out, 64), expected, "choice {choice}");
    }
}

#[test]
fn lanes_leave_loops_at_different_times_and_meet_again() {
    let limits: Vec<i32> = (0..96).map(|i| i * 7 % 23).collect();
    let mut device = Device::new(LANGUAGE);
    let out = device.room::<i32>(96);
    let arguments = Arguments::new().with(out).with(device.upload(&limits));
    assert_clean(&device.run("loops", shape([1, 1, 1], 96), &arguments, &Options::default()));
    let expected: Vec<i32> = limits
        .iter()
        .map(|limit| {
            let mut sum = 0;
            for i in 0..*limit {
                for k in 0..=i {
                    if (i * k) % 7 == 6 {
                        break;
                    }
                    if k % 2 == 1 {
                        continue;
                    }
                    sum += i + k;
                }
                if sum > 500 {
                    sum = -sum;
                    break;
                }
            }
            sum
        })
        .collect();
    assert_eq!(device.download::<i32>(out, 96), expected);
}

#[test]
fn blocks_that_wait_for_each_other_get_their_turns() {
    for schedule in [Schedule::InOrder, Schedule::Random(1), Schedule::Random(2)] {
        let mut device = Device::new(LANGUAGE);
        let out = device.room::<i32>(12);
        let turn = device.upload(&[0i32]);
        let arguments = Arguments::new().with(out).with(turn);
        let options = Options { schedule, instruction_limit: 1 << 30, ..Options::default() };
        assert_clean(&device.run("chain", shape([12, 1, 1], 32), &arguments, &options));
        let expected: Vec<i32> = (0..12).map(|i| 1 << i).collect();
        assert_eq!(device.download::<i32>(out, 12), expected, "{schedule:?}");
    }
}

fn moves(disks: i32, from: usize, to: usize, pegs: &mut [i32; 3]) -> i32 {
    if disks == 0 {
        return 0;
    }
    let other = 3 - from - to;
    let first = moves(disks - 1, from, other, pegs);
    pegs[from] -= 1;
    pegs[to] += 1;
    first + 1 + moves(disks - 1, other, to, pegs)
}

#[test]
fn functions_call_themselves_with_variables_of_their_own() {
    let mut device = Device::new(FUNCTIONS);
    let out = device.room::<i32>(50 * 3);
    let arguments = Arguments::new().with(out);
    assert_clean(&device.run("recursion", shape([1, 1, 1], 50), &arguments, &Options::default()));
    let expected: Vec<i32> = (0..50)
        .flat_map(|thread| {
            let disks = thread % 6;
            let mut pegs = [disks, 0, 0];
            let count = moves(disks, 0, 2, &mut pegs);
            let sum: i32 = (0..=thread % 9).map(|level| level * (level + thread)).sum();
            [count, pegs[0] * 100 + pegs[1] * 10 + pegs[2], sum]
        })
        .collect();
    assert_eq!(device.download::<i32>(out, 50 * 3), expected);
}

#[test]
fn lanes_call_different_functions_through_pointers() {
    let mut device = Device::new(FUNCTIONS);
    let out = device.room::<i32>(64 * 2);
    let arguments = Arguments::new().with(out).with(3);
    assert_clean(&device.run("pointers", shape([1, 1, 1], 64), &arguments, &Options::default()));
    let operations: [fn(i32, i32) -> i32; 4] =
        [|a, b| a + b, |a, b| a - b, |a, b| a * b, |a, b| a.min(b)];
    let expected: Vec<i32> = (0..64)
        .flat_map(|i| {
            let area = if i % 2 == 0 { i * i } else { i * 3 };
            [operations[(i as usize + 3) % 4](i, 7), area]
        })
        .collect();
    assert_eq!(device.download::<i32>(out, 64 * 2), expected);
}

#[test]
fn a_recursion_without_end_is_stopped() {
    // Compilers make loops of such functions.
    let device = Device::new(
        ".version 8.8\n.target sm_80\n.address_size 64\n
         .func deeper(.param .b32 level) {
             .reg .b32 r<2>; .local .align 4 .b8 own[64];
             ld.param.u32 r0, [level]; st.local.u32 [own], r0;
             { .param .b32 next; st.param.b32 [next], r0; call deeper, (next); }
             ret; }
         .visible .entry endless() {
             { .param .b32 first; st.param.b32 [first], 1; call deeper, (first); }
             ret; }",
    );
    let options = Options { instruction_limit: 1 << 20, ..Options::default() };
    let outcome = device.run("endless", shape([1, 1, 1], 32), &Arguments::new(), &options);
    let fault = outcome.fault().expect("the stack is full");
    assert!(fault.to_string().contains("bytes of stack of a thread"), "{fault}");
}

#[test]
fn a_pointer_to_no_function_is_not_called() {
    let mut device = Device::new(FUNCTIONS);
    let out = device.room::<i32>(32);
    let arguments = Arguments::new().with(out).with(0x1234u64);
    let grid = shape([1, 1, 1], 32);
    let outcome = device.run("wild_pointer", grid, &arguments, &Options::default());
    let fault = outcome.fault().expect("no function is there");
    assert!(fault.to_string().contains("call of 0x1234"), "{fault}");
}
