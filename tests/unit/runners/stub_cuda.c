/* A libcuda without a GPU: the functions that edgetune calls, over host memory, with a log of every call.
 *
 * Stricter than a driver: a device address is no host address, copies are done as late as the API allows (into the
 * GPU when the stream runs, out of it when the stream is synchronised), and whatever needs a current context, a live
 * stream or a live allocation refuses to work without. STUB_CUDA_FAIL="name:code:skip" makes the call after `skip`
 * successful ones of that name return that code. Allocations over 1 GiB have no memory behind them. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int CUresult;
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct context *CUcontext;
typedef struct stream *CUstream;

enum { INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_CONTEXT = 201,
       INVALID_HANDLE = 400 };
enum { MAX = 64 };
#define ADDRESS_BIT (1ULL << 63)
#define NO_MEMORY_BEHIND ((size_t)1 << 30)

struct block { CUdeviceptr address; size_t size; };
struct copy { void *host; CUdeviceptr address; size_t size; int into_gpu; };

static struct block blocks[MAX];
static struct copy pending[MAX];
static int pending_count, streams_live, retained, initialised, seen;
static unsigned char stream_marks[MAX];
static CUcontext const the_context = (CUcontext)0x7fedcba987654320;
static _Thread_local CUcontext current_context;
static char log_text[1 << 20];
static size_t log_used;

void stub_note(const char *line) {
    if (log_used + strlen(line) + 2 > sizeof log_text) abort();
    log_used += (size_t)snprintf(log_text + log_used, sizeof log_text - log_used, "%s\n", line);
}
#define NOTE(...) do { char line[512]; snprintf(line, sizeof line, __VA_ARGS__); stub_note(line); } while (0)

const char *stub_log(void) { return log_text; }

void stub_reset(void) {
    for (int i = 0; i < MAX; i++) {
        if (blocks[i].address && blocks[i].size <= NO_MEMORY_BEHIND)
            free((void *)(uintptr_t)(blocks[i].address & ~ADDRESS_BIT));
    }
    memset(blocks, 0, sizeof blocks);
    memset(stream_marks, 0, sizeof stream_marks);
    pending_count = streams_live = retained = initialised = seen = 0;
    current_context = NULL;
    log_used = 0;
    log_text[0] = 0;
}

int stub_live(void) {
    int count = streams_live + retained;
    for (int i = 0; i < MAX; i++) count += blocks[i].address != 0;
    return count;
}

int stub_context_is_current(void) { return retained > 0 && current_context == the_context; }

static int told_to_fail(const char *name) {
    const char *told = getenv("STUB_CUDA_FAIL");
    char wanted[64];
    int code, skip;
    if (!told || sscanf(told, "%63[^:]:%d:%d", wanted, &code, &skip) != 3 || strcmp(wanted, name)) return 0;
    return seen++ == skip ? code : 0;
}
#define BEGIN(name, ...) do { NOTE(name __VA_ARGS__); int told = told_to_fail(name); if (told) return told; } while (0)
#define NEED(condition, code) do { if (!(condition)) return code; } while (0)

/* The host memory of a device address, or NULL unless `size` bytes of one live allocation lie there. */
void *stub_memory(CUdeviceptr address, size_t size) {
    for (int i = 0; i < MAX; i++) {
        struct block b = blocks[i];
        if (b.address && address >= b.address && address - b.address <= b.size && size <= b.size - (address - b.address))
            return (void *)(uintptr_t)(address & ~ADDRESS_BIT);
    }
    return NULL;
}

static int has_memory(CUdeviceptr address) {
    for (int i = 0; i < MAX; i++) {
        if (address >= blocks[i].address && address - blocks[i].address < blocks[i].size) return blocks[i].size <= NO_MEMORY_BEHIND;
    }
    return 0;
}

static int is_stream(CUstream stream) {
    return (unsigned char *)stream > stream_marks && (unsigned char *)stream < stream_marks + MAX && *(unsigned char *)stream;
}

static void carry_out(int into_gpu) {
    int kept = 0;
    for (int i = 0; i < pending_count; i++) {
        struct copy c = pending[i];
        if (c.into_gpu != into_gpu) {
            pending[kept++] = c;
            continue;
        }
        void *memory = stub_memory(c.address, c.size);
        if (!memory) NOTE("a copy found its memory freed");
        else if (!has_memory(c.address)) continue;
        else if (into_gpu) memcpy(memory, c.host, c.size);
        else memcpy(c.host, memory, c.size);
    }
    pending_count = kept;
}

/* Called by what plays the kernels: from here on the GPU has the inputs. 0 when the stream is not alive. */
int stub_run(uint64_t stream) {
    if (!is_stream((CUstream)(uintptr_t)stream)) return 0;
    carry_out(1);
    return 1;
}

CUresult cuGetErrorName(CUresult error, const char **text) {
    *text = error == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : error == NO_DEVICE ? "CUDA_ERROR_NO_DEVICE"
            : error == INVALID_CONTEXT ? "CUDA_ERROR_INVALID_CONTEXT" : error == 700 ? "CUDA_ERROR_ILLEGAL_ADDRESS" : NULL;
    return *text ? 0 : INVALID_VALUE;
}

CUresult cuGetErrorString(CUresult error, const char **text) {
    *text = error == OUT_OF_MEMORY ? "out of memory" : error == NO_DEVICE ? "no CUDA-capable device is detected"
            : error == INVALID_CONTEXT ? "invalid device context"
            : error == 700 ? "an illegal memory access was encountered" : NULL;
    return *text ? 0 : INVALID_VALUE;
}

CUresult cuInit(unsigned int flags) {
    BEGIN("cuInit", " %u", flags);
    initialised = 1;
    return 0;
}

CUresult cuDriverGetVersion(int *version) {
    BEGIN("cuDriverGetVersion");
    *version = 13000;
    return 0;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    BEGIN("cuDeviceGet", " %d", ordinal);
    NEED(initialised, 3);
    NEED(ordinal == 0, INVALID_DEVICE);
    *device = 7;
    return 0;
}

CUresult cuDeviceGetName(char *name, int length, CUdevice device) {
    BEGIN("cuDeviceGetName", " %d", device);
    NEED(device == 7, INVALID_DEVICE);
    snprintf(name, (size_t)length, "Stub GPU 9000");
    return 0;
}

CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device) {
    BEGIN("cuDeviceGetAttribute", " %d %d", attribute, device);
    NEED(device == 7 && (attribute == 75 || attribute == 76), INVALID_VALUE);
    *value = attribute == 75 ? 8 : 6;
    return 0;
}

CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
    BEGIN("cuDeviceTotalMem_v2", " %d", device);
    *bytes = 12884901888ULL;
    return 0;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    BEGIN("cuDevicePrimaryCtxRetain", " %d", device);
    NEED(device == 7, INVALID_DEVICE);
    retained++;
    *context = the_context;
    return 0;
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    BEGIN("cuDevicePrimaryCtxRelease_v2", " %d", device);
    NEED(device == 7 && retained > 0, INVALID_CONTEXT);
    retained--;
    return 0;
}

CUresult cuCtxGetCurrent(CUcontext *context) {
    BEGIN("cuCtxGetCurrent");
    *context = current_context;
    return 0;
}

CUresult cuCtxSetCurrent(CUcontext context) {
    BEGIN("cuCtxSetCurrent", " %#llx", (unsigned long long)(uintptr_t)context);
    NEED(!context || retained > 0, INVALID_CONTEXT);
    current_context = context;
    return 0;
}

CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t size) {
    BEGIN("cuMemAlloc_v2", " %zu", size);
    NEED(stub_context_is_current(), INVALID_CONTEXT);
    NEED(size > 0, INVALID_VALUE);
    for (int i = 0; i < MAX; i++) {
        if (blocks[i].address) continue;
        uintptr_t host = size > NO_MEMORY_BEHIND ? (uintptr_t)0x123456789a0000 + i : (uintptr_t)malloc(size);
        blocks[i] = (struct block){(CUdeviceptr)host | ADDRESS_BIT, size};
        *address = blocks[i].address;
        return 0;
    }
    return OUT_OF_MEMORY;
}

CUresult cuMemFree_v2(CUdeviceptr address) {
    BEGIN("cuMemFree_v2", " %llu", address);
    NEED(stub_context_is_current(), INVALID_CONTEXT);
    for (int i = 0; i < MAX; i++) {
        if (!address || blocks[i].address != address) continue;
        if (blocks[i].size <= NO_MEMORY_BEHIND) free((void *)(uintptr_t)(address & ~ADDRESS_BIT));
        blocks[i] = (struct block){0, 0};
        return 0;
    }
    NOTE("freed twice or never allocated");
    return INVALID_VALUE;
}

static CUresult later(struct copy copy, CUstream stream) {
    NEED(stub_context_is_current(), INVALID_CONTEXT);
    NEED(is_stream(stream), INVALID_HANDLE);
    NEED(stub_memory(copy.address, copy.size) && pending_count < MAX, INVALID_VALUE);
    pending[pending_count++] = copy;
    return 0;
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t size, CUstream stream) {
    BEGIN("cuMemcpyHtoDAsync_v2", " %llu %zu", to, size);
    return later((struct copy){(void *)(uintptr_t)from, to, size, 1}, stream);
}

CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t size, CUstream stream) {
    BEGIN("cuMemcpyDtoHAsync_v2", " %llu %zu", from, size);
    return later((struct copy){to, from, size, 0}, stream);
}

CUresult cuStreamCreate(CUstream *stream, unsigned int flags) {
    BEGIN("cuStreamCreate", " %u", flags);
    NEED(stub_context_is_current(), INVALID_CONTEXT);
    for (int i = 1; i < MAX; i++) {
        if (stream_marks[i]) continue;
        stream_marks[i] = 1;
        streams_live++;
        *stream = (CUstream)&stream_marks[i];
        return 0;
    }
    return OUT_OF_MEMORY;
}

CUresult cuStreamDestroy_v2(CUstream stream) {
    BEGIN("cuStreamDestroy_v2");
    NEED(stub_context_is_current(), INVALID_CONTEXT);
    NEED(is_stream(stream), INVALID_HANDLE);
    *(unsigned char *)stream = 0;
    streams_live--;
    return 0;
}

CUresult cuStreamSynchronize(CUstream stream) {
    BEGIN("cuStreamSynchronize");
    NEED(stub_context_is_current(), INVALID_CONTEXT);
    NEED(is_stream(stream), INVALID_HANDLE);
    carry_out(1);
    carry_out(0);
    return 0;
}
