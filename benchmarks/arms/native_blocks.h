/* The first layer's updates in blocks of examples, for native.c.

   The inputs of a block, X, are known, so its products with the kernel are one matrix
   product. Example j lacks the updates d_i of the examples i before it: the products of
   inputs, x_j . x_i, times d_i. At the end of the block all updates are one matrix
   product. With momentum m and velocities V, example j sees W + (m + ... + m^j) V, and
   of d_i the first 1 + m + ... + m^(j-1-i) of its moves. */

/* Keeps a vector in its register, where GCC would load it again for each use. */
#ifdef __AVX512F__
#define KEEP(vector) __asm__("" : "+v"(vector))
#else
#define KEEP(vector)
#endif

enum { BLOCK = 64, TILE = 4 }; /* TILE: rows and columns of a product in registers */

typedef struct {
    vec *x; /* inputs, a row of `stride` vectors per example */
    float *z, *zv, *d; /* x W, x V, updates: a row of `outs` per example */
    float *dw, *dv; /* updates as they arrive in W and in V at the end */
    float gram[BLOCK * BLOCK];
    float start[BLOCK + 1], moves[BLOCK + 1]; /* shares of V and of an update */
    int outs;
} Walk;

static Walk *make_walk(Block **blocks, const Dense *d) {
    Walk *walk = allocate(blocks, sizeof *walk);
    walk->outs = (d->outputs + 15) / 16 * 16;
    size_t bytes = (size_t)BLOCK * walk->outs * sizeof(float);
    walk->x = allocate(blocks, BLOCK * d->stride * sizeof(vec));
    for (float **m = &walk->z; m <= &walk->dv; m++) *m = allocate(blocks, bytes);
    for (int j = 0; j < BLOCK; j++) /* what cross_entropy expects beside the outputs */
        for (int o = d->outputs; o < walk->outs; o++) walk->z[j * walk->outs + o] = -1e30f;
    float power = 1;
    for (int j = 0; j < BLOCK; j++) {
        walk->moves[j + 1] = walk->moves[j] + power;
        power *= d->momentum;
        walk->start[j + 1] = walk->start[j] + power;
    }
    return walk;
}

/* out[r][c] = a[r] . b[c], for `rows` x `columns` rows of `width` vectors. */
INLINE void dot_tile(const vec *a, const vec *b, long stride, long width, const int rows,
                     const int columns, float *out, long outs) {
    vec sum[TILE][TILE];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int c = 0; c < columns; c++) sum[r][c] = (vec){0};
    for (long k = 0; k < width; k++) {
        vec right[TILE]; /* loaded once */
#pragma GCC unroll 4
        for (int c = 0; c < columns; c++) {
            right[c] = b[c * stride + k];
            KEEP(right[c]);
        }
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            vec left = a[r * stride + k];
            KEEP(left);
#pragma GCC unroll 4
            for (int c = 0; c < columns; c++) sum[r][c] += left * right[c];
        }
    }
    for (int r = 0; r < rows; r++)
        for (int c = 0; c < columns; c++) out[r * outs + c] = sum_lanes(sum[r][c]);
}

/* out = a b^T; `below`: only the tiles that have entries below the diagonal. */
static void dots(const vec *a, int rows, const vec *b, int columns, const Dense *d,
                 float *out, long outs, int below) {
    const long stride = d->stride, width = d->width;
    for (int c = 0; c < columns;) {
        int wide = c + TILE <= columns;
        for (int r = below ? c / TILE * TILE : 0; r < rows;) {
            const vec *left = a + r * stride, *right = b + c * stride;
            float *to = out + r * outs + c;
            int high = r + TILE <= rows;
            if (high && wide) dot_tile(left, right, stride, width, 4, 4, to, outs);
            else if (high) dot_tile(left, right, stride, width, 4, 1, to, outs);
            else if (wide) dot_tile(left, right, stride, width, 1, 4, to, outs);
            else dot_tile(left, right, stride, width, 1, 1, to, outs);
            r += high ? TILE : 1;
        }
        c += wide ? TILE : 1;
    }
}

/* w[r] = keep w[r] + share v[r] + sum over examples of step[j][r] x[j]. */
INLINE void add_tile(vec *w, const vec *v, float keep, float share, const float *step,
                     long outs, const vec *x, long stride, int count, const int rows,
                     const int columns) {
    vec sum[TILE][TILE];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int c = 0; c < columns; c++) {
            sum[r][c] = w[r * stride + c] * keep;
            if (v) sum[r][c] += v[r * stride + c] * share;
        }
    for (int j = 0; j < count; j++) {
        vec inputs[TILE]; /* loaded once */
#pragma GCC unroll 4
        for (int c = 0; c < columns; c++) {
            inputs[c] = x[j * stride + c];
            KEEP(inputs[c]);
        }
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            float by = step[j * outs + r];
#pragma GCC unroll 4
            for (int c = 0; c < columns; c++) sum[r][c] += inputs[c] * by;
        }
    }
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int c = 0; c < columns; c++) w[r * stride + c] = sum[r][c];
}

/* Columns outside: their inputs stay in the first cache. */
static void add_products(const Dense *d, vec *w, const vec *v, float keep, float share,
                         const float *step, const Walk *walk, int count) {
    const long stride = d->stride, outs = walk->outs;
    for (long c = 0; c < d->width;) {
        int wide = c + TILE <= d->width;
        for (int r = 0; r < d->outputs;) {
            long at = r * stride + c;
            const vec *velocity = v ? v + at : NULL, *x = walk->x + c;
            const float *by = step + r;
            int high = r + TILE <= d->outputs;
#define ADD(rows, columns)                                                             \
    add_tile(w + at, velocity, keep, share, by, outs, x, stride, count, rows, columns)
            if (high && wide) ADD(4, 4);
            else if (high) ADD(4, 1);
            else if (wide) ADD(1, 4);
            else ADD(1, 1);
#undef ADD
            r += high ? TILE : 1;
        }
        c += wide ? TILE : 1;
    }
}

/* The first layer's products with the inputs of `count` examples. */
static void begin_block(const Dense *d, Walk *walk, const float *x, int count) {
    for (int j = 0; j < count; j++)
        memcpy(walk->x + j * d->stride, x + (long)j * d->inputs,
               d->inputs * sizeof(float));
    dots(walk->x, count, d->w, d->outputs, d, walk->z, walk->outs, 0);
    if (d->v) dots(walk->x, count, d->v, d->outputs, d, walk->zv, walk->outs, 0);
    dots(walk->x, count, walk->x, count, d, walk->gram, BLOCK, 1);
}

/* The outputs of example j, as the updates of those before it left the kernel. */
static void block_forward(const Dense *d, const Walk *walk, int j) {
    const int outs = walk->outs, lanes = outs / 16 * (16 / LANES);
    const float *gram = walk->gram + j * BLOCK;
    vec *y = (vec *)d->y;
    const vec *z = (vec *)(walk->z + j * outs), *zv = (vec *)(walk->zv + j * outs);
    for (int o = 0; o < lanes; o++) {
        vec sum = z[o] + ((vec *)d->b)[o];
        if (d->v) sum += zv[o] * walk->start[j];
        for (int i = 0; i < j; i++) {
            float share = gram[i] * (d->v ? walk->moves[j - i] : 1);
            sum += ((vec *)(walk->d + i * outs))[o] * share;
        }
        y[o] = sum;
    }
}

/* Keeps the update of example j; the bias moves at once. */
static void block_update(const Dense *d, Walk *walk, int j) {
    memcpy(walk->d + j * walk->outs, d->dy, d->outputs * sizeof(float));
    for (int o = 0; o < d->outputs; o++) {
        float step = d->dy[o];
        if (d->v) step = d->vb[o] = d->momentum * d->vb[o] + step;
        d->b[o] += step;
    }
}

static void end_block(const Dense *d, Walk *walk, int count) {
    if (!d->v) {
        add_products(d, d->w, NULL, 1, 0, walk->d, walk, count);
        return;
    }
    float power = 1; /* of momentum: what a later example leaves of an update in V */
    for (int j = count - 1; j >= 0; j--, power *= d->momentum)
        for (int o = 0; o < d->outputs; o++) {
            float step = walk->d[j * walk->outs + o];
            walk->dw[j * walk->outs + o] = step * walk->moves[count - j];
            walk->dv[j * walk->outs + o] = step * power;
        }
    add_products(d, d->w, d->v, 1, walk->start[count], walk->dw, walk, count);
    add_products(d, d->v, NULL, power, 0, walk->dv, walk, count);
}
