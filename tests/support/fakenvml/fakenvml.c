/* A stand-in for libnvidia-ml.so.1: every call that the GPU exporter makes, answered from the text file that
 * $FAKE_NVML names. The file is looked at on every call, so a test changes it under a running process by
 * replacing it. Lines are INDEX KEY VALUES, INDEX -1 for the machine; '#' begins a comment. What is not in the
 * file is not supported. Besides values:
 *   I error.FUNCTION CODE   the call fails with CODE        (-1: on every GPU)
 *   I error.field.ID CODE   one field value fails
 *   I hang.FUNCTION 1       the call does not return while the line is there
 *   I lost 1                every call on the GPU fails with "GPU is lost"
 *   I xid CODE              an XID event; each line is delivered once
 * Structures follow nvml.h of NVML 12.9. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef int R;
enum { OK = 0, UNINIT = 1, INVALID = 2, NOTSUP = 3, NOTFOUND = 6, INSUFF = 7, TIMEOUT = 10, LOST = 15 };
enum { GPUS = 16, MIGS = 8, LINES = 4096, MACHINE = GPUS };
typedef unsigned long long u64;
typedef struct { int idx, mig; } Dev;
typedef struct { char key[64], value[192]; int next; } Line;

static Dev devs[GPUS], migs[GPUS][MIGS];
static Line lines[LINES];
static int first[GPUS + 1], used, inited, xids_taken;
static struct stat seen;

static void load(void) {
    const char *path = getenv("FAKE_NVML");
    struct stat now;
    if (!path || stat(path, &now)) { used = 0; for (int i = 0; i <= GPUS; i++) first[i] = -1; return; }
    if (now.st_ino == seen.st_ino && now.st_size == seen.st_size && now.st_mtim.tv_nsec == seen.st_mtim.tv_nsec &&
        now.st_mtim.tv_sec == seen.st_mtim.tv_sec) return;
    seen = now; used = 0;
    for (int i = 0; i <= GPUS; i++) first[i] = -1;
    FILE *file = fopen(path, "r");
    if (!file) return;
    char text[320]; int last[GPUS + 1];
    while (fgets(text, sizeof text, file) && used < LINES) {
        int index, skip = 0; Line *line = &lines[used];
        line->value[0] = 0;
        if (text[0] == '#' || sscanf(text, "%d %63s %n", &index, line->key, &skip) < 2) continue;
        text[strcspn(text, "\n")] = 0;
        if (skip) snprintf(line->value, sizeof line->value, "%s", text + skip);
        int slot = index < 0 ? MACHINE : index;
        if (slot > GPUS) continue;
        line->next = -1;
        if (first[slot] < 0) first[slot] = used; else lines[last[slot]].next = used;
        last[slot] = used++;
    }
    fclose(file);
}
static const char *find(int slot, const char *key) {
    for (int i = first[slot]; i >= 0; i = lines[i].next) if (!strcmp(lines[i].key, key)) return lines[i].value;
    return NULL;
}
static const char *rule(const char *kind, int slot, const char *name) {
    char key[96]; snprintf(key, sizeof key, "%s.%s", kind, name);
    const char *text = slot == MACHINE ? NULL : find(slot, key);
    return text ? text : find(MACHINE, key);
}
static R gate(const char *name, Dev *dev) {
    int slot = dev ? dev->idx : MACHINE;
    load();
    while (rule("hang", slot, name)) { usleep(10000); load(); }
    const char *error = rule("error", slot, name);
    if (error) return atoi(error);
    if (!inited) return UNINIT;
    return dev && find(slot, "lost") ? LOST : OK;
}
static R numbers(Dev *dev, const char *key, int want, u64 *out) {
    const char *text = find(dev->idx, key); char *end;
    if (!text) return NOTSUP;
    for (int i = 0; i < want; i++) { out[i] = strtoull(text, &end, 0); if (end == text) return NOTSUP; text = end; }
    return OK;
}
static R text_of(int slot, const char *key, char *out, unsigned size) {
    const char *text = find(slot, key);
    if (!text) return NOTSUP;
    if (strlen(text) + 1 > size) return INSUFF;
    strcpy(out, text);
    return OK;
}

#define GATE(dev) do { R gated = gate(__func__, dev); if (gated) return gated; } while (0)
#define NUMBERS(key, want) u64 v[want]; do { GATE(d); R read = numbers(d, key, want, v); if (read) return read; } while (0)
#define UINT(name, key) R name(Dev *d, unsigned *out) { NUMBERS(key, 1); *out = v[0]; return OK; }
#define ULONG(name, key) R name(Dev *d, u64 *out) { NUMBERS(key, 1); *out = v[0]; return OK; }
#define PAIR(name, key) R name(Dev *d, unsigned *a, unsigned *b) { NUMBERS(key, 2); *a = v[0]; *b = v[1]; return OK; }
#define TEXT(name, key) R name(Dev *d, char *out, unsigned size) { GATE(d); return text_of(d->idx, key, out, size); }
#define CHOICE(name, prefix) R name(Dev *d, int which, unsigned *out) { \
    char key[64]; snprintf(key, sizeof key, prefix "%d", which); NUMBERS(key, 1); *out = v[0]; return OK; }

R nvmlInitWithFlags(unsigned flags) { (void)flags; inited = 1; R gated = gate(__func__, NULL); if (gated) { inited = 0; return gated; }
    xids_taken = 0;
    for (int i = 0; i < GPUS; i++) { devs[i].idx = i; devs[i].mig = -1; for (int m = 0; m < MIGS; m++) { migs[i][m].idx = i; migs[i][m].mig = m; } }
    return OK; }
R nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
R nvmlShutdown(void) { GATE(NULL); inited = 0; return OK; }
const char *nvmlErrorString(R code) { return code == OK ? "Success" : "Error"; }
R nvmlSystemGetDriverVersion(char *out, unsigned size) { GATE(NULL); return text_of(MACHINE, "driver", out, size); }
R nvmlSystemGetNVMLVersion(char *out, unsigned size) { GATE(NULL); return text_of(MACHINE, "nvml", out, size); }
R nvmlSystemGetCudaDriverVersion_v2(int *out) { GATE(NULL); const char *t = find(MACHINE, "cuda"); if (!t) return NOTSUP; *out = atoi(t); return OK; }
R nvmlDeviceGetCount_v2(unsigned *out) { GATE(NULL); const char *t = find(MACHINE, "count"); *out = t ? atoi(t) : 0; return OK; }
R nvmlDeviceGetHandleByIndex_v2(unsigned i, Dev **out) { GATE(NULL); const char *t = find(MACHINE, "count");
    if (!t || i >= (unsigned)atoi(t) || i >= GPUS) return INVALID; *out = &devs[i]; return gate(__func__, &devs[i]); }

R nvmlDeviceGetName(Dev *d, char *out, unsigned size) { GATE(d); char key[32] = "name";
    if (d->mig >= 0) snprintf(key, sizeof key, "mig%d.name", d->mig); return text_of(d->idx, key, out, size); }
TEXT(nvmlDeviceGetVbiosVersion, "vbios") TEXT(nvmlDeviceGetSerial, "serial")
R nvmlDeviceGetUUID(Dev *d, char *out, unsigned size) { GATE(d); char key[32] = "uuid";
    if (d->mig >= 0) snprintf(key, sizeof key, "mig%d.uuid", d->mig); return text_of(d->idx, key, out, size); }
typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } Pci;
R nvmlDeviceGetPciInfo_v3(Dev *d, Pci *p) { GATE(d); memset(p, 0, sizeof *p); return text_of(d->idx, "pci", p->bus_id, sizeof p->bus_id); }
UINT(nvmlDeviceGetMinorNumber, "minor")
R nvmlDeviceGetCudaComputeCapability(Dev *d, int *major, int *minor) { NUMBERS("capability", 2); *major = v[0]; *minor = v[1]; return OK; }
typedef struct { unsigned gpu, memory; } Utilization;
R nvmlDeviceGetUtilizationRates(Dev *d, Utilization *u) { NUMBERS("utilization", 2); u->gpu = v[0]; u->memory = v[1]; return OK; }
PAIR(nvmlDeviceGetEncoderUtilization, "encoder") PAIR(nvmlDeviceGetDecoderUtilization, "decoder")
typedef struct { u64 total, free, used; } Memory;
R nvmlDeviceGetMemoryInfo(Dev *d, Memory *m) { char key[32] = "memory_v1"; if (d->mig >= 0) snprintf(key, sizeof key, "mig%d.memory", d->mig);
    NUMBERS(key, 2); m->total = v[0]; m->used = v[1]; m->free = v[0] - v[1]; return OK; }
typedef struct { unsigned version; u64 total, reserved, free, used; } Memory2;
R nvmlDeviceGetMemoryInfo_v2(Dev *d, Memory2 *m) { NUMBERS("memory", 3); m->total = v[0]; m->reserved = v[1]; m->used = v[2];
    m->free = v[0] - v[1] - v[2]; return OK; }
typedef struct { u64 total, free, used; } Bar1;
R nvmlDeviceGetBAR1MemoryInfo(Dev *d, Bar1 *b) { NUMBERS("bar1", 2); b->total = v[0]; b->used = v[1]; b->free = v[0] - v[1]; return OK; }
UINT(nvmlDeviceGetPowerUsage, "power") ULONG(nvmlDeviceGetTotalEnergyConsumption, "energy")
UINT(nvmlDeviceGetEnforcedPowerLimit, "power_limit") UINT(nvmlDeviceGetPowerManagementDefaultLimit, "power_default")
PAIR(nvmlDeviceGetPowerManagementLimitConstraints, "power_range")
CHOICE(nvmlDeviceGetTemperature, "temperature.") CHOICE(nvmlDeviceGetTemperatureThreshold, "threshold.")
typedef struct { unsigned version; int margin; } Margin;
R nvmlDeviceGetMarginTemperature(Dev *d, Margin *m) { NUMBERS("margin", 1); m->margin = v[0]; return OK; }
CHOICE(nvmlDeviceGetClockInfo, "clock.") CHOICE(nvmlDeviceGetMaxClockInfo, "clock_max.")
ULONG(nvmlDeviceGetSupportedClocksEventReasons, "reasons_supported") ULONG(nvmlDeviceGetCurrentClocksEventReasons, "reasons")
ULONG(nvmlDeviceGetSupportedClocksThrottleReasons, "throttle_supported") ULONG(nvmlDeviceGetCurrentClocksThrottleReasons, "throttle")
UINT(nvmlDeviceGetPerformanceState, "pstate") UINT(nvmlDeviceGetPersistenceMode, "persistence")
typedef struct { unsigned version; unsigned char cluster[16]; R status; unsigned clique; unsigned char state; unsigned health; } Fabric;
R nvmlDeviceGetGpuFabricInfoV(Dev *d, Fabric *f) { NUMBERS("fabric", 1); f->state = v[0]; f->status = OK; return OK; }
PAIR(nvmlDeviceGetEccMode, "ecc")
R nvmlDeviceGetTotalEccErrors(Dev *d, int type, int counter, u64 *out) { char key[32]; snprintf(key, sizeof key, "ecc_errors.%d.%d", type, counter);
    NUMBERS(key, 1); *out = v[0]; return OK; }
R nvmlDeviceGetRemappedRows(Dev *d, unsigned *c, unsigned *u, unsigned *p, unsigned *f) { NUMBERS("remapped", 4);
    *c = v[0]; *u = v[1]; *p = v[2]; *f = v[3]; return OK; }
R nvmlDeviceGetRowRemapperHistogram(Dev *d, unsigned *out) { NUMBERS("remap_banks", 5); for (int i = 0; i < 5; i++) out[i] = v[i]; return OK; }
R nvmlDeviceGetRetiredPages(Dev *d, int cause, unsigned *count, u64 *pages) { char key[32]; snprintf(key, sizeof key, "retired.%d", cause);
    NUMBERS(key, 1); unsigned room = *count; *count = v[0]; if (room < v[0]) return INSUFF;
    for (unsigned i = 0; pages && i < v[0]; i++) pages[i] = i; return OK; }
UINT(nvmlDeviceGetRetiredPagesPendingStatus, "retired_pending")
UINT(nvmlDeviceGetCurrPcieLinkGeneration, "pcie_gen") UINT(nvmlDeviceGetMaxPcieLinkGeneration, "pcie_gen_max")
UINT(nvmlDeviceGetCurrPcieLinkWidth, "pcie_width") UINT(nvmlDeviceGetMaxPcieLinkWidth, "pcie_width_max")
UINT(nvmlDeviceGetPcieReplayCounter, "pcie_replays") CHOICE(nvmlDeviceGetPcieThroughput, "pcie_throughput.")
CHOICE(nvmlDeviceGetNvLinkState, "nvlink.") UINT(nvmlDeviceGetNumFans, "fans") CHOICE(nvmlDeviceGetFanSpeed_v2, "fan.")
PAIR(nvmlDeviceGetMigMode, "mig") UINT(nvmlDeviceGetMaxMigDeviceCount, "mig_max")
R nvmlDeviceGetMigDeviceHandleByIndex(Dev *d, unsigned i, Dev **out) { GATE(d); char key[32]; snprintf(key, sizeof key, "mig%u.uuid", i);
    if (i >= MIGS || !find(d->idx, key)) return NOTFOUND; *out = &migs[d->idx][i]; return OK; }
R nvmlDeviceGetGpuInstanceId(Dev *d, unsigned *out) { char key[32]; snprintf(key, sizeof key, "mig%d.instance", d->mig); NUMBERS(key, 1); *out = v[0]; return OK; }
R nvmlDeviceGetComputeInstanceId(Dev *d, unsigned *out) { char key[32]; snprintf(key, sizeof key, "mig%d.compute", d->mig); NUMBERS(key, 1); *out = v[0]; return OK; }

/* Process lines: "I compute PID BYTES", "I graphics PID BYTES", "I busy PID MICROSECONDS SM"; BYTES -1 is "not available". */
typedef struct { unsigned pid; u64 memory; unsigned instance, compute; } Process;
static R processes(Dev *d, const char *key, unsigned *count, Process *out) {
    char marker[32]; snprintf(marker, sizeof marker, "%s_processes", key);
    if (!find(d->idx, marker)) return NOTSUP;
    unsigned found = 0, room = *count;
    for (int i = first[d->idx]; i >= 0; i = lines[i].next) if (!strcmp(lines[i].key, key)) {
        if (out && found < room) { long long memory = -1; unsigned pid = 0; sscanf(lines[i].value, "%u %lld", &pid, &memory);
            out[found] = (Process){ pid, (u64)memory, 0xFFFFFFFF, 0xFFFFFFFF }; }
        found++; }
    *count = found;
    return found > (out ? room : 0) ? INSUFF : OK;
}
R nvmlDeviceGetComputeRunningProcesses_v3(Dev *d, unsigned *count, Process *out) { GATE(d); return processes(d, "compute", count, out); }
R nvmlDeviceGetGraphicsRunningProcesses_v3(Dev *d, unsigned *count, Process *out) { GATE(d); return processes(d, "graphics", count, out); }
R nvmlDeviceGetComputeRunningProcesses_v2(Dev *d, unsigned *count, Process *out) { GATE(d); return processes(d, "compute", count, out); }
R nvmlDeviceGetGraphicsRunningProcesses_v2(Dev *d, unsigned *count, Process *out) { GATE(d); return processes(d, "graphics", count, out); }
typedef struct { unsigned pid; u64 at; unsigned sm, memory, encoder, decoder; } Busy;
R nvmlDeviceGetProcessUtilization(Dev *d, Busy *out, unsigned *count, u64 since) { GATE(d);
    if (!find(d->idx, "busy_samples")) return NOTSUP;
    unsigned found = 0, room = *count;
    for (int i = first[d->idx]; i >= 0; i = lines[i].next) if (!strcmp(lines[i].key, "busy")) {
        Busy b = {0}; sscanf(lines[i].value, "%u %llu %u", &b.pid, &b.at, &b.sm);
        if (b.at <= since) continue;
        if (out && found < room) out[found] = b;
        found++; }
    *count = found;
    return !found ? NOTFOUND : found > (out ? room : 0) ? INSUFF : OK;
}

typedef union { double d; unsigned ui; unsigned long ul; u64 ull; long long sll; int si; } Value;
typedef struct { unsigned id, scope; long long at, latency; int type; R result; Value value; } FieldValue;
R nvmlDeviceGetFieldValues(Dev *d, int count, FieldValue *f) { GATE(d);
    for (int i = 0; i < count; i++) { char key[64], name[32]; u64 v = 0;
        snprintf(name, sizeof name, "field.%u", f[i].id);
        const char *error = rule("error", d->idx, name);
        snprintf(key, sizeof key, "field.%u.%u", f[i].id, f[i].scope);
        if (!find(d->idx, key)) snprintf(key, sizeof key, "field.%u", f[i].id);
        f[i].type = 3;
        f[i].result = error ? atoi(error) : numbers(d, key, 1, &v);
        if (f[i].result == OK) f[i].value.ull = v; }
    return OK;
}

typedef struct { Dev *device; u64 type, data; unsigned instance, compute; } Event;
static int event_set;
R nvmlEventSetCreate(int **out) { GATE(NULL); *out = &event_set; return OK; }
R nvmlEventSetFree(int *set) { (void)set; GATE(NULL); return OK; }
ULONG(nvmlDeviceGetSupportedEventTypes, "events")
R nvmlDeviceRegisterEvents(Dev *d, u64 types, int *set) { (void)types; (void)set; GATE(d); return OK; }
R nvmlEventSetWait_v2(int *set, Event *event, unsigned timeout) { (void)set; (void)timeout; GATE(NULL);
    int number = 0;
    for (int g = 0; g < GPUS; g++) for (int i = first[g]; i >= 0; i = lines[i].next)
        if (!strcmp(lines[i].key, "xid") && number++ == xids_taken) {
            *event = (Event){ &devs[g], 8, strtoull(lines[i].value, NULL, 10), 0xFFFFFFFF, 0xFFFFFFFF };
            xids_taken++;
            return OK; }
    return TIMEOUT;
}
