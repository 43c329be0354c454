/* What Outboard uses of DPDK, and shims for what its headers have as inline functions. Fields of
 * mbufs are read and written here alone: their layout changes with DPDK's releases, and with the
 * flags that it was built with. */
#include <rte_config.h>
#include <stdlib.h>
#include <rte_bus.h>
#include <rte_dev.h>
#include <rte_devargs.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_lcore.h>
#include <rte_mbuf.h>
#include <rte_memory.h>
#include <rte_mempool.h>

/* Macros that bindgen does not read. */
static const uint64_t OUTBOARD_TX_MULTI_SEGS = RTE_ETH_TX_OFFLOAD_MULTI_SEGS;
static const uint64_t OUTBOARD_RX_SCATTER = RTE_ETH_RX_OFFLOAD_SCATTER;
static const uint64_t OUTBOARD_RX_VLAN_STRIP = RTE_ETH_RX_OFFLOAD_VLAN_STRIP;
static const uint16_t OUTBOARD_MBUF_HEADROOM = RTE_PKTMBUF_HEADROOM;
static const int OUTBOARD_ANY_SOCKET = SOCKET_ID_ANY;

/* The most packets of one burst. */
#define OUTBOARD_BURST 32

/* One segment of a received packet. */
struct outboard_view {
    struct rte_mbuf *mbuf;
    struct rte_mbuf *next;
    /* The start of its buffer; data begins `start` bytes behind it. */
    uint8_t *buffer;
    uint16_t start;
    uint16_t len;
    /* Of the packet: segments, bytes, the tag that was taken out of it. */
    uint16_t segments;
    uint16_t tag;
    uint32_t bytes;
    /* Whether a tag was taken out. */
    uint8_t tag_stripped;
    /* Whether every segment is of the pool asked for and nobody else has it. */
    uint8_t ours;
};

/* One segment of a packet to send. */
struct outboard_piece {
    struct rte_mbuf *mbuf;
    /* Where data begins, from the start of the mbuf's buffer. */
    uint16_t start;
    uint16_t len;
    /* Segments of the packet, in its first; 0 in the others. */
    uint16_t segments;
    /* Bytes of the packet, in its first. */
    uint32_t bytes;
};

/* Receives up to `count` packets and looks at the first segment of each. Those of a packet that is
 * `ours` come unlinked, as a pool wants them. */
uint16_t shim_receive(uint16_t port, struct rte_mempool *pool, struct outboard_view *views,
                      uint16_t count);
/* Looks at a further segment, and unlinks it. */
void shim_unlink(struct rte_mbuf *mbuf, struct outboard_view *view);
/* The same, and leaves it linked. */
void shim_look(const struct rte_mbuf *mbuf, struct outboard_view *view);
/* Sends packets made of pieces of a pinned pool; how many were taken. The mbufs of the others are
 * unlinked again. */
uint16_t shim_send_pieces(uint16_t port, const struct outboard_piece *pieces, uint16_t packets);
/* Sends packets; how many were taken. */
uint16_t shim_send(uint16_t port, struct rte_mbuf **mbufs, uint16_t packets);
/* As many raw mbufs of the pool as asked for (0), or none (negative). */
int shim_take(struct rte_mempool *pool, struct rte_mbuf **mbufs, unsigned int count);
/* Raw mbufs back into their pool. */
void shim_give(struct rte_mempool *pool, struct rte_mbuf **mbufs, unsigned int count);
/* Every thread's cache of the pool back into the pool; no other thread may use it meanwhile. */
void shim_flush(struct rte_mempool *pool);
void *shim_buffer(const struct rte_mbuf *mbuf);
struct rte_mbuf *shim_alloc(struct rte_mempool *pool);
/* Room for `len` more bytes at the end of the packet, or NULL. */
void *shim_append(struct rte_mbuf *mbuf, uint16_t len);
void shim_free(struct rte_mbuf *mbuf);
/* The name of the bus that such a device would be on; NULL where none takes it. */
const char *shim_bus(const char *device);
int shim_errno(void);
int shim_has_lcore(void);
int shim_link_is_up(uint16_t port);
