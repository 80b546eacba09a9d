/* The native arm: SGD, one example at a time, one thread, float32.

   Kernels are kept transposed, one padded row of inputs per output, so that every inner
   loop runs along contiguous vectors whatever the number of outputs. The gradient of a
   kernel is an outer product and is never stored: the pass that updates a row of
   weights also uses it for the gradient of the inputs (before the update) or, in the
   first layer, whose next inputs are known, for the next example's outputs (after it).

   All gradients carry the factor -learning_rate, from the loss on. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif
#ifdef __SSE__
#include <xmmintrin.h>
#endif

#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif
#define ROWS 4 /* outputs that share the loads of a layer's inputs */
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES), may_alias));
typedef float quad __attribute__((vector_size(16), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), may_alias));

INLINE ivec select_lanes(ivec mask, ivec yes, ivec no) {
    return (yes & mask) | (no & ~mask);
}

/* a where z > 0, else 0 */
INLINE vec where_positive(vec z, vec a) { return (vec)((ivec)a & (z > (vec){0})); }

INLINE float sum_lanes(vec a) {
    const quad *parts = (quad *)&a;
    quad sum = parts[0];
    for (int i = 1; i < LANES / 4; i++) sum += parts[i];
    return sum[0] + sum[1] + (sum[2] + sum[3]);
}

/* ---- Memory: zeroed, aligned, freed with the network ---- */

typedef struct Block {
    struct Block *next;
    char padding[64 - sizeof(void *)];
} Block;

static void *allocate(Block **blocks, size_t bytes) {
    size_t align = bytes < 1 << 18 ? 64 : 1 << 21; /* large: of huge pages */
    size_t size = (sizeof(Block) + bytes + align - 1) / align * align;
    Block *block = aligned_alloc(align, size);
    if (!block) abort();
#ifdef MADV_HUGEPAGE
    if (align > 64) madvise(block, size, MADV_HUGEPAGE);
#endif
    memset(block, 0, sizeof(Block) + bytes);
    block->next = *blocks;
    *blocks = block;
    return block + 1;
}

/* ---- Dense layers ---- */

typedef struct {
    int inputs, outputs, width, stride; /* width, stride: vectors in a row */
    float momentum;
    vec *w, *v, *x, *dx; /* weights, velocities; inputs, their gradient */
    float *b, *vb, *y, *dy; /* biases, velocities; outputs, their gradient */
} Dense;

/* What a pass over a layer does, in this order. */
enum { GRADIENT = 1, UPDATE = 2, MOMENTUM = 4, OUTPUTS = 8 };

/* A pass over n outputs from `o`: dx += dy w, then w's update by dy x, then y = w next.
   `work` is constant at each call, so that every kind of pass has loops of its own. */
INLINE void pass_rows(const Dense *d, const int o, const int n, const int work,
                      const vec *next) {
    const long stride = d->stride, width = d->width;
    const vec *x = d->x;
    vec *w = d->w + o * stride, *v = d->v + o * stride, *dx = d->dx;
    vec dy[ROWS], sum[ROWS], momentum = (vec){0} + d->momentum;
    for (int r = 0; r < n; r++) {
        sum[r] = (vec){0};
        dy[r] = (vec){0} + d->dy[o + r];
        float step = d->dy[o + r];
        if (work & MOMENTUM) step = d->vb[o + r] = d->momentum * d->vb[o + r] + step;
        if (work & UPDATE) d->b[o + r] += step;
    }
    for (long k = 0; k < width; k++) {
        vec in = {0}, out = {0}, gradient = {0};
        if (work & UPDATE) in = x[k];
        if (work & OUTPUTS) out = next[k];
        if (work & GRADIENT) gradient = dx[k];
#pragma GCC unroll 8
        for (int r = 0; r < n; r++) {
            vec row = w[r * stride + k];
            if (work & GRADIENT) gradient += dy[r] * row;
            if (work & MOMENTUM) {
                vec step = momentum * v[r * stride + k] + dy[r] * in;
                v[r * stride + k] = step;
                row += step;
            } else if (work & UPDATE) {
                row += dy[r] * in;
            }
            if (work & UPDATE) w[r * stride + k] = row;
            if (work & OUTPUTS) sum[r] += row * out;
        }
        if (work & GRADIENT) dx[k] = gradient;
    }
    if (work & OUTPUTS)
        for (int r = 0; r < n; r++) d->y[o + r] = sum_lanes(sum[r]) + d->b[o + r];
}

INLINE void pass_layer(const Dense *d, const int work, const vec *next) {
    int o = 0;
    for (; o + ROWS <= d->outputs; o += ROWS) pass_rows(d, o, ROWS, work, next);
    for (; o < d->outputs; o++) pass_rows(d, o, 1, work, next);
}

static void forward(const Dense *d) { pass_layer(d, OUTPUTS, d->x); }

INLINE void pass(const Dense *d, const int work, const vec *next) {
    if (d->v) pass_layer(d, work | MOMENTUM, next);
    else pass_layer(d, work, next);
}

static void backward(const Dense *d) {
    memset(d->dx, 0, d->width * sizeof(vec));
    pass(d, GRADIENT | UPDATE, NULL);
}

static void update(const Dense *d) { pass(d, UPDATE, NULL); }

static void update_then_forward(const Dense *d, const vec *next) {
    pass(d, UPDATE | OUTPUTS, next);
}

static void relu_inputs(const Dense *d) {
    for (int k = 0; k < d->width; k++) d->x[k] = where_positive(d->x[k], d->x[k]);
}

static void relu_gradient(const Dense *d) {
    for (int k = 0; k < d->width; k++) d->dx[k] = where_positive(d->x[k], d->dx[k]);
}

#include "native_blocks.h"

/* ---- Losses of the last layer's outputs; fill its dy ---- */

static float squared_error(const Dense *d, const float *target, float rate) {
    float loss = 0;
    for (int o = 0; o < d->outputs; o++) {
        float error = d->y[o] - target[o];
        loss += error * error;
        d->dy[o] = -rate * 2 / d->outputs * error;
    }
    return loss / d->outputs;
}

/* Outputs are padded to whole 16s with very negative ones, so that expf vectorises. */
static float cross_entropy(const Dense *d, int label, float rate) {
    float max = d->y[0], total = 0;
    for (int o = 1; o < d->outputs; o++) max = d->y[o] > max ? d->y[o] : max;
    for (int o = 0; o < (d->outputs + 15) / 16 * 16; o++) {
        float z = d->y[o] - max;
        d->dy[o] = expf(z > -80 ? z : -80); /* beyond: 0 beside the largest */
        total += d->dy[o];
    }
    for (int o = 0; o < d->outputs; o++) d->dy[o] *= -rate / total;
    d->dy[label] += rate;
    return logf(total) + max - d->y[label];
}

/* ---- The CNN's convolutions: 28x28 -> 13x13x16 -> 5x5x32 ---- */

enum { C1 = 16, C2 = 32, SIDE = 28, SIDE1 = 13, SIDE2 = 5, TAPS = 9 };
enum { V1 = C1 / LANES, V2 = C2 / LANES, STRIP = 3 * V1 }; /* STRIP: 3 pixels */

typedef struct {
    vec w1[TAPS][V1], b1[V1];
    vec x[SIDE1 * SIDE1 * V1], dx[SIDE1 * SIDE1 * V1]; /* between the convolutions */
    ivec from1[SIDE1 * SIDE1 * V1]; /* which of the four won the max-pool */
    vec rows2[C2][TAPS * V1]; /* the second kernel, transposed */
    vec w2[V2 / 2][TAPS * C1][2], b2[V2]; /* again, by two vectors of outputs */
    ivec from2[SIDE2 * SIDE2 * V2];
} Convs;

/* The ReLU of the largest of four. */
INLINE vec pool_relu(const vec *z, ivec *from) {
    vec best = z[0];
    *from = (ivec){0};
    for (int j = 1; j < 4; j++) {
        ivec more = z[j] > best;
        best = (vec)select_lanes(more, (ivec)z[j], (ivec)best);
        *from = select_lanes(more, (ivec){0} + j, *from);
    }
    return where_positive(best, best);
}

static void conv1_forward(Convs *c, const float *image) {
    for (int h = 0; h < V1; h++)
        for (int p = 0; p < SIDE1 * SIDE1; p++) {
            const float *in = image + p / SIDE1 * 2 * SIDE + p % SIDE1 * 2;
            vec z[4];
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                z[j] = c->b1[h];
#pragma GCC unroll 9
                for (int t = 0; t < TAPS; t++)
                    z[j] += c->w1[t][h] * in[(j / 2 + t / 3) * SIDE + j % 2 + t % 3];
            }
            c->x[p * V1 + h] = pool_relu(z, &c->from1[p * V1 + h]);
        }
}

static void conv1_backward(Convs *c, const float *image) {
    for (int h = 0; h < V1; h++) {
        vec step[TAPS] = {0}, bias = {0};
        for (int p = 0; p < SIDE1 * SIDE1; p++) {
            const float *in = image + p / SIDE1 * 2 * SIDE + p % SIDE1 * 2;
            vec g = where_positive(c->x[p * V1 + h], c->dx[p * V1 + h]);
            bias += g;
#pragma GCC unroll 4
            for (int j = 0; j < 4; j++) {
                vec won = (vec)((ivec)g & (c->from1[p * V1 + h] == j));
#pragma GCC unroll 9
                for (int t = 0; t < TAPS; t++)
                    step[t] += won * in[(j / 2 + t / 3) * SIDE + j % 2 + t % 3];
            }
        }
        for (int t = 0; t < TAPS; t++) c->w1[t][h] += step[t];
        c->b1[h] += bias;
    }
}

/* Two vectors of outputs at the four places of one pooling window at a time. */
static void conv2_forward(Convs *c, vec *out) {
    for (int h = 0; h < V2; h += 2)
        for (int p = 0; p < SIDE2 * SIDE2; p++) {
            vec z[2][4];
            for (int j = 0; j < 8; j++) z[j / 4][j % 4] = c->b2[h + j / 4];
            for (int row = 0; row < 3; row++) {
                int pixel = (p / SIDE2 * 2 + row) * SIDE1 + p % SIDE2 * 2;
                const float *x = (float *)(c->x + pixel * V1);
                const vec *w = c->w2[h / 2][row * 3 * C1];
#pragma GCC unroll 2 /* also keeps w0 and w1 in registers */
                for (int t = 0; t < 3 * C1; t++) {
                    vec w0 = w[2 * t], w1 = w[2 * t + 1];
#pragma GCC unroll 4
                    for (int j = 0; j < 4; j++) {
                        float value = x[(j / 2 * SIDE1 + j % 2) * C1 + t];
                        z[0][j] += w0 * value;
                        z[1][j] += w1 * value;
                    }
                }
            }
            for (int i = 0; i < 2; i++)
                out[p * V2 + h + i] = pool_relu(z[i], &c->from2[p * V2 + h + i]);
        }
}

static void copy_row2(Convs *c, int o) {
    float *w = (float *)c->w2[o / (2 * LANES)] + o % (2 * LANES);
    const float *row = (float *)c->rows2[o];
    for (int t = 0; t < TAPS * C1; t++) w[t * 2 * LANES] = row[t];
}

/* Only the place that won its pooling window has a gradient: 25 per output. Columns
   first: windows one above the other share no pixel in a row of taps. */
static void conv2_backward(Convs *c, const float *dout) {
    static const int place[4] = {0, V1, SIDE1 * V1, (SIDE1 + 1) * V1};
    memset(c->dx, 0, sizeof c->dx);
    for (int o = 0; o < C2; o++) {
        const int *from = (int *)c->from2 + o;
        for (int row = 0; row < 3; row++) {
            vec *w = c->rows2[o] + row * STRIP, step[STRIP] = {0};
            for (int x = 0; x < SIDE2; x++)
                for (int y = 0; y < SIDE2; y++) {
                    int p = (y * SIDE2 + x) * C2;
                    long at = ((2 * y + row) * SIDE1 + 2 * x) * V1 + place[from[p]];
                    float g = dout[p + o];
#pragma GCC unroll 6
                    for (int k = 0; k < STRIP; k++) {
                        step[k] += c->x[at + k] * g;
                        c->dx[at + k] += w[k] * g;
                    }
                }
            for (int k = 0; k < STRIP; k++) w[k] += step[k];
        }
        copy_row2(c, o);
        for (int p = 0; p < SIDE2 * SIDE2; p++) ((float *)c->b2)[o] += dout[p * C2 + o];
    }
}

/* ---- The network ---- */

typedef struct {
    Block *blocks;
    Dense *layers;
    vec *next; /* the first layer's coming inputs */
    Convs *convs; /* NULL: only dense layers */
    Walk *walk; /* in blocks */
    int num_layers, cross_entropy;
    float rate;
} Net;

/* `sizes`: inputs and outputs of the dense layers. */
void *create(const int *sizes, int num_layers, int convs, int cross_entropy, float rate,
             float momentum) {
    Net *net = calloc(1, sizeof *net);
    Block **blocks = &net->blocks;
    net->layers = allocate(blocks, num_layers * sizeof(Dense));
    net->num_layers = num_layers;
    net->cross_entropy = cross_entropy;
    net->rate = rate;
    if (convs) net->convs = allocate(blocks, sizeof(Convs));
    for (int l = 0; l < num_layers; l++) {
        Dense *d = &net->layers[l];
        d->inputs = sizes[l], d->outputs = sizes[l + 1], d->momentum = momentum;
        d->width = (d->inputs + LANES - 1) / LANES;
        d->stride = d->width | 1; /* odd: rows fall into different cache sets */
        size_t row = d->width * sizeof(vec), outs = (d->outputs + 15) / 16 * 64;
        d->w = allocate(blocks, d->outputs * d->stride * sizeof(vec));
        if (momentum) d->v = allocate(blocks, d->outputs * d->stride * sizeof(vec));
        d->b = allocate(blocks, outs), d->vb = allocate(blocks, outs);
        d->y = allocate(blocks, outs), d->dy = allocate(blocks, outs);
        d->x = l ? (vec *)d[-1].y : allocate(blocks, row);
        d->dx = l ? (vec *)d[-1].dy : allocate(blocks, row);
    }
    net->next = allocate(blocks, net->layers->width * sizeof(vec));
    net->walk = make_walk(blocks, net->layers);
    const Dense *last = &net->layers[num_layers - 1];
    for (int o = last->outputs; o % 16; o++) last->y[o] = -1e30f;
    return net;
}

void destroy(Net *net) {
    for (Block *block = net->blocks, *next; block; block = next) {
        next = block->next;
        free(block);
    }
    free(net);
}

static void copy(int put, float *theirs, float *ours, long bytes) {
    memcpy(put ? ours : theirs, put ? theirs : ours, bytes);
}

static void transpose(int put, float *theirs, float *ours, int rows, int columns,
                      int stride) {
    for (long i = 0; i < rows; i++)
        for (long j = 0; j < columns; j++)
            copy(put, theirs + i * columns + j, ours + j * stride + i, 4);
}

/* Takes (put) or gives all weights, in Keras's order and layout. */
void exchange(Net *net, float **weights, int put) {
    Convs *c = net->convs;
    if (c) {
        copy(put, *weights++, (float *)c->w1, sizeof c->w1);
        copy(put, *weights++, (float *)c->b1, sizeof c->b1);
        transpose(put, *weights++, (float *)c->rows2, TAPS * C1, C2, TAPS * C1);
        for (int o = 0; o < C2; o++) copy_row2(c, o);
        copy(put, *weights++, (float *)c->b2, sizeof c->b2);
    }
    for (Dense *d = net->layers; d < net->layers + net->num_layers; d++) {
        transpose(put, *weights++, (float *)d->w, d->inputs, d->outputs,
                  d->stride * LANES);
        copy(put, *weights++, d->b, d->outputs * sizeof(float));
    }
}

/* Layers from `start`, whose inputs still lack their ReLU: forward, loss, backward. */
static float rest(const Net *net, int start, const void *y, long i) {
    const Dense *last = &net->layers[net->num_layers - 1];
    for (const Dense *d = net->layers + start; d <= last; d++) {
        relu_inputs(d);
        forward(d);
    }
    float loss;
    if (net->cross_entropy) loss = cross_entropy(last, ((const int *)y)[i], net->rate);
    else loss = squared_error(last, (const float *)y + i * last->outputs, net->rate);
    for (const Dense *d = last; d >= net->layers + start; d--) {
        backward(d);
        relu_gradient(d);
    }
    return loss;
}

/* Fused: the first layer's update and the next example's outputs are one pass over its
   weights. Not fused: each example is done before the next is looked at. */
static double train_dense(Net *net, const float *x, const void *y, long count,
                          int fused) {
    Dense *first = net->layers;
    double loss = 0;
    for (long i = 0; i < count; i++) {
        memcpy(net->next, x + i * first->inputs, first->inputs * sizeof(float));
        if (i && fused) update_then_forward(first, net->next);
        vec *previous = first->x;
        first->x = net->next, net->next = previous;
        if (!i || !fused) forward(first);
        loss += rest(net, 1, y, i);
        if (i == count - 1 || !fused) update(first);
    }
    return loss;
}

static double train_blocks(Net *net, const float *x, const void *y, long count) {
    Dense *first = net->layers;
    Walk *walk = net->walk;
    double loss = 0;
    for (long start = 0; start < count; start += BLOCK) {
        int length = count - start < BLOCK ? count - start : BLOCK;
        begin_block(first, walk, x + start * first->inputs, length);
        for (int j = 0; j < length; j++) {
            block_forward(first, walk, j);
            loss += rest(net, 1, y, start + j);
            block_update(first, walk, j);
        }
        end_block(first, walk, length);
    }
    return loss;
}

static double train_convs(Net *net, const float *x, const void *y, long count) {
    double loss = 0;
    for (long i = 0; i < count; i++) {
        const float *image = x + i * SIDE * SIDE;
        conv1_forward(net->convs, image);
        conv2_forward(net->convs, net->layers->x);
        loss += rest(net, 0, y, i);
        conv2_backward(net->convs, (float *)net->layers->dx);
        conv1_backward(net->convs, image);
    }
    return loss;
}

/* How the first layer is updated; the other layers are the same in all. */
enum { EXAMPLE_BY_EXAMPLE, FUSED, IN_BLOCKS };

/* One pass over the examples; the sum of their losses. */
double train(Net *net, const float *x, const void *y, long count, int how) {
#ifdef __SSE__
    unsigned int mode = _mm_getcsr();
    _mm_setcsr(mode | 0x8040); /* denormals are zero: idle velocities shrink to them */
#endif
    double loss = net->convs          ? train_convs(net, x, y, count)
                  : how == IN_BLOCKS ? train_blocks(net, x, y, count)
                                     : train_dense(net, x, y, count, how == FUSED);
#ifdef __SSE__
    _mm_setcsr(mode);
#endif
    return loss;
}
