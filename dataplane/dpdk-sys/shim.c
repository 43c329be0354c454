#include "shim.h"

/* As pool.rs has it. */
_Static_assert(RTE_BAD_IOVA == UINT64_MAX, "the address of what devices cannot reach");

static inline void look(const struct rte_mbuf *mbuf, struct outboard_view *view)
{
    view->mbuf = (struct rte_mbuf *)(uintptr_t)mbuf;
    view->next = mbuf->next;
    view->buffer = mbuf->buf_addr;
    view->start = mbuf->data_off;
    view->len = mbuf->data_len;
    view->segments = mbuf->nb_segs;
    view->tag = mbuf->vlan_tci;
    view->bytes = mbuf->pkt_len;
    view->tag_stripped = (mbuf->ol_flags & RTE_MBUF_F_RX_VLAN_STRIPPED) != 0;
}

static inline void unlink_segment(struct rte_mbuf *mbuf)
{
    mbuf->next = NULL;
    mbuf->nb_segs = 1;
}

static inline int is_ours(const struct rte_mbuf *mbuf, const struct rte_mempool *pool)
{
    for (; mbuf != NULL; mbuf = mbuf->next)
        if (mbuf->pool != pool || rte_mbuf_refcnt_read(mbuf) != 1)
            return 0;
    return 1;
}

uint16_t shim_receive(uint16_t port, struct rte_mempool *pool, struct outboard_view *views,
                      uint16_t count)
{
    struct rte_mbuf *mbufs[OUTBOARD_BURST];
    uint16_t received = rte_eth_rx_burst(port, 0, mbufs, RTE_MIN(count, OUTBOARD_BURST));

    for (uint16_t i = 0; i < received; i++) {
        look(mbufs[i], &views[i]);
        views[i].ours = is_ours(mbufs[i], pool);
        if (views[i].ours && views[i].segments > 1)
            unlink_segment(mbufs[i]);
    }
    return received;
}

void shim_unlink(struct rte_mbuf *mbuf, struct outboard_view *view)
{
    look(mbuf, view);
    unlink_segment(mbuf);
}

void shim_look(const struct rte_mbuf *mbuf, struct outboard_view *view)
{
    look(mbuf, view);
}

static inline struct rte_mbuf *fill(const struct outboard_piece *piece)
{
    struct rte_mbuf *mbuf = piece->mbuf;

    mbuf->data_off = piece->start;
    mbuf->data_len = piece->len;
    mbuf->ol_flags = RTE_MBUF_F_EXTERNAL;
    mbuf->port = RTE_MBUF_PORT_INVALID;
    mbuf->packet_type = 0;
    mbuf->vlan_tci = 0;
    mbuf->tx_offload = 0;
    return mbuf;
}

uint16_t shim_send_pieces(uint16_t port, const struct outboard_piece *pieces, uint16_t packets)
{
    struct rte_mbuf *heads[OUTBOARD_BURST];

    for (uint16_t i = 0; i < packets; i++) {
        struct rte_mbuf *last = fill(pieces);
        uint16_t segments = pieces->segments;

        heads[i] = last;
        last->pkt_len = pieces->bytes;
        last->nb_segs = segments;
        pieces++;
        for (uint16_t s = 1; s < segments; s++, pieces++) {
            last->next = fill(pieces);
            last = last->next;
        }
    }

    uint16_t sent = rte_eth_tx_burst(port, 0, heads, packets);

    for (uint16_t i = sent; i < packets; i++) {
        struct rte_mbuf *mbuf = heads[i];

        while (mbuf != NULL) {
            struct rte_mbuf *next = mbuf->next;

            unlink_segment(mbuf);
            mbuf = next;
        }
    }
    return sent;
}

uint16_t shim_send(uint16_t port, struct rte_mbuf **mbufs, uint16_t packets)
{
    return rte_eth_tx_burst(port, 0, mbufs, packets);
}

int shim_take(struct rte_mempool *pool, struct rte_mbuf **mbufs, unsigned int count)
{
    return rte_mempool_get_bulk(pool, (void **)mbufs, count);
}

void shim_give(struct rte_mempool *pool, struct rte_mbuf **mbufs, unsigned int count)
{
    rte_mempool_put_bulk(pool, (void *const *)mbufs, count);
}

void shim_flush(struct rte_mempool *pool)
{
    if (pool->cache_size == 0)
        return;
    for (unsigned int lcore = 0; lcore < RTE_MAX_LCORE; lcore++)
        rte_mempool_cache_flush(&pool->local_cache[lcore], pool);
}

void *shim_buffer(const struct rte_mbuf *mbuf)
{
    return mbuf->buf_addr;
}

struct rte_mbuf *shim_alloc(struct rte_mempool *pool)
{
    return rte_pktmbuf_alloc(pool);
}

void *shim_append(struct rte_mbuf *mbuf, uint16_t len)
{
    return rte_pktmbuf_append(mbuf, len);
}

void shim_free(struct rte_mbuf *mbuf)
{
    rte_pktmbuf_free(mbuf);
}

const char *shim_bus(const char *device)
{
    struct rte_devargs arguments = {0};

    if (rte_devargs_parse(&arguments, device) != 0)
        return NULL;
    free(arguments.data);
    return rte_bus_name(arguments.bus);
}

int shim_errno(void)
{
    return rte_errno;
}

int shim_has_lcore(void)
{
    return rte_lcore_id() != LCORE_ID_ANY;
}

int shim_link_is_up(uint16_t port)
{
    struct rte_eth_link link;

    return rte_eth_link_get_nowait(port, &link) == 0 && link.link_status == RTE_ETH_LINK_UP;
}
