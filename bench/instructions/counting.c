/* Counts the instructions that an emulated program executes, for qemu-user 6 to 8 (plugin interface 1).
 *
 * The program speaks to it by a system call that fails harmlessly: getpriority(CALL, word). PAUSE and RESUME keep out
 * what is not to be counted; any other word is a mark, and "mark <word> <count>" goes to stderr. Counting is exact while
 * one thread works.
 *
 * Debian has no package with qemu-plugin.h, so what is used of it is declared here.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };
typedef void (*on_translation)(qemu_plugin_id_t, struct qemu_plugin_tb *);
typedef void (*on_syscall)(qemu_plugin_id_t, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                           uint64_t, uint64_t, uint64_t);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t, on_translation);
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, enum qemu_plugin_op, void *, uint64_t);
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t, on_syscall);

enum { GETPRIORITY = 141, CALL = 0x51c0, PAUSE = 1000001, RESUME = 1000002 };

int qemu_plugin_version = 1;
static uint64_t executed, paused_at, left_out;

/* Blocks of instructions are translated once and executed often: each adds its length when it is entered. */
static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *block)
{
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_inline(block, QEMU_PLUGIN_INLINE_ADD_U64, &executed,
                                             qemu_plugin_tb_n_insns(block));
}

static void called(qemu_plugin_id_t id, unsigned cpu, int64_t number, uint64_t which, uint64_t word, uint64_t a3,
                   uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8)
{
    (void)id, (void)cpu, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number != GETPRIORITY || which != CALL)
        return;
    if (word == PAUSE)
        paused_at = executed;
    else if (word == RESUME)
        left_out += executed - paused_at;
    else
        fprintf(stderr, "mark %llu %llu\n", (unsigned long long)word, (unsigned long long)(executed - left_out));
}

int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv)
{
    (void)info, (void)argc, (void)argv;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
