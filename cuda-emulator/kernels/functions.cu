// Functions that call themselves, and functions behind pointers.

// The towers of Hanoi: moves `disks` from one peg to another, and counts the moves.
__device__ __noinline__ int hanoi(int disks, int from, int to, int* pegs) {
    if (disks == 0) return 0;
    int other = 3 - from - to;
    int first = hanoi(disks - 1, from, other, pegs);
    pegs[from]--;
    pegs[to]++;
    return first + 1 + hanoi(disks - 1, other, to, pegs);
}

// A list of levels in local memory of each call.
struct Level {
    const Level* above;
    int value;
};

__device__ __noinline__ int descend(int level, const Level* above) {
    Level own = {above, level * (level + int(threadIdx.x))};
    if (level > 0) return descend(level - 1, &own);
    int sum = 0;
    for (const Level* at = &own; at != nullptr; at = at->above) sum += at->value;
    return sum;
}

extern "C" __global__ void recursion(int* out) {
    int thread = threadIdx.x, pegs[3] = {thread % 6, 0, 0};
    out[thread * 3] = hanoi(thread % 6, 0, 2, pegs);
    out[thread * 3 + 1] = pegs[0] * 100 + pegs[1] * 10 + pegs[2];
    out[thread * 3 + 2] = descend(thread % 9, nullptr);
}

using Operation = int (*)(int, int);

__device__ __noinline__ int add(int a, int b) { return a + b; }
__device__ __noinline__ int subtract(int a, int b) { return a - b; }
__device__ __noinline__ int multiply(int a, int b) { return a * b; }
__device__ __noinline__ int least(int a, int b) { return a < b ? a : b; }

__device__ Operation operations[4] = {add, subtract, multiply, least};

struct Shape {
    int side;
    __device__ Shape(int side) : side(side) {}
    __device__ virtual int area() const = 0;
};

struct Square : Shape {
    using Shape::Shape;
    __device__ int area() const override { return side * side; }
};

struct Strip : Shape {
    using Shape::Shape;
    __device__ int area() const override { return side * 3; }
};

extern "C" __global__ void pointers(int* out, int first) {
    int thread = threadIdx.x;
    Square square(thread);
    Strip strip(thread);
    const Shape* shape = thread % 2 == 0 ? static_cast<const Shape*>(&square) : &strip;
    out[thread * 2] = operations[(thread + first) % 4](thread, 7);
    out[thread * 2 + 1] = shape->area();
}

extern "C" __global__ void wild_pointer(int* out, Operation operation) { out[threadIdx.x] = operation(1, 2); }
