// What kernels for compute capability 9.0 use beyond common.cuh: mbarriers, copies of tiles by TMA, and wgmma.
#pragma once
#include "common.cuh"

// What cuTensorMapEncodeTiled makes.
struct __align__(64) TensorMap {
    char bytes[128];
};

// 64 rows of 128 bytes; chunk c of 16 bytes of row r lies at place c ^ (r % 8): the swizzle of 128 bytes.
struct __align__(1024) Panel {
    u16 values[64 * 64];
};

__device__ __forceinline__ void init_barrier(u64* barrier, u32 count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}

// Makes initializations known to copies.
__device__ __forceinline__ void fence_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ __forceinline__ void arrive(u64* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Arrives, and lets the phase wait for the bytes of copies too.
__device__ __forceinline__ void arrive_expecting(u64* barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}

// Waits for the end of a phase; phases of a barrier have parity 0, 1, 0, ..
__device__ __forceinline__ void wait(u64* barrier, u32 parity) {
    asm volatile("{\n"
                 ".reg .pred over;\n"
                 "again: mbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n"
                 "@!over bra again;\n"
                 "}" ::"r"(shared_address(barrier)),
                 "r"(parity)
                 : "memory");
}

// Copies the box at column x and row y of the tensor.
__device__ __forceinline__ void load_box(void* to, const TensorMap& map, int x, int y, u64* barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3}], [%4];" ::"r"(shared_address(to)),
                 "l"(&map), "r"(x), "r"(y), "r"(shared_address(barrier))
                 : "memory");
}

// Lets TMA and wgmma see what ordinary stores wrote.
__device__ __forceinline__ void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ __forceinline__ void sync_threads(int barrier, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

__device__ __forceinline__ void arrive_threads(int barrier, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
}

// Gives registers of a warpgroup up, or takes what others gave up.
template <int COUNT> __device__ __forceinline__ void fewer_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

template <int COUNT> __device__ __forceinline__ void more_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }

// Keeps the compiler from moving what is done to the sums across: wgmma.fence must come after it.
template <int COUNT> __device__ __forceinline__ void pin(float (&sums)[COUNT]) {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

// The descriptor of a matrix in a panel: eight rows are 1,024 bytes apart.
__device__ __forceinline__ u64 matrix(const u16* start) {
    const u64 address = (shared_address(start) & 0x3ffff) >> 4;
    return address | u64(1) << 16 | u64(1024 >> 4) << 32 | u64(1) << 62;
}

#define SUMS_8(s, i)                                                                                                   \
    "+f"(s[i]), "+f"(s[i + 1]), "+f"(s[i + 2]), "+f"(s[i + 3]), "+f"(s[i + 4]), "+f"(s[i + 5]), "+f"(s[i + 6]),        \
        "+f"(s[i + 7])
#define SUMS_32(s) SUMS_8(s, 0), SUMS_8(s, 8), SUMS_8(s, 16), SUMS_8(s, 24)
#define NAMES_32                                                                                                       \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "  \
    "%24, %25, %26, %27, %28, %29, %30, %31}"
#define WGMMA "wgmma.mma_async.sync.aligned.m64n64k16.f32." MMA_TYPES " " NAMES_32

// sums = a * b, or sums += a * b where `adds` is not 0: 64 rows of a, 64 rows of b, 16 neighbours of each.
__device__ __forceinline__ void wgmma_rows(float (&sums)[32], u64 a, u64 b, int adds) {
    asm volatile("{\n"
                 ".reg .pred adds;\n"
                 "setp.ne.b32 adds, %34, 0;\n" WGMMA ", %32, %33, adds, 1, 1, 0, 0;\n"
                 "}"
                 : SUMS_32(sums)
                 : "l"(a), "l"(b), "r"(adds));
}

// sums += a * b: a in registers, 64 columns of 16 rows of b.
__device__ __forceinline__ void wgmma_columns(float (&sums)[32], const u32 (&a)[4], u64 b) {
    asm volatile(WGMMA ", {%32, %33, %34, %35}, %36, 1, 1, 1, 1;\n"
                 : SUMS_32(sums)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
