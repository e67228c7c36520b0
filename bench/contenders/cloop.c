/* The floor of a fan-out: send() of one frame to every accepted socket, in a loop, and nothing else.
 *
 * Compiled and started by the benchmark: cloop PORT REDIS_PORT. It answers WebSocket handshakes, subscribes to
 * events:broadcast, and writes each message that arrives, less its "recipients" member, as one text frame to every
 * socket there is. What it costs is what the kernel asks for; no gateway on this machine can ask for less per send().
 *
 * Not done here: everything else. No authentication, no rooms, no services, nothing that a client sends is looked at,
 * no buffering: send() blocks.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST_SOCKETS 65536
#define LONGEST 65536

static int sockets[MOST_SOCKETS];
static int count;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static uint32_t turn(uint32_t word, int bits) { return word << bits | word >> (32 - bits); }

/* SHA-1 of at most 119 bytes, for Sec-WebSocket-Accept. */
static void sha1(const char *text, size_t length, uint8_t digest[20]) {
    uint32_t h[5] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0};
    uint8_t block[128] = {0};
    size_t size = length < 56 ? 64 : 128;
    memcpy(block, text, length);
    block[length] = 0x80;
    block[size - 2] = length * 8 >> 8;
    block[size - 1] = length * 8 & 255;
    for (uint8_t *at = block; at < block + size; at += 64) {
        uint32_t w[80], a = h[0], b = h[1], c = h[2], d = h[3], e = h[4];
        for (int i = 0; i < 80; i++) {
            w[i] = i < 16 ? (uint32_t)at[4 * i] << 24 | at[4 * i + 1] << 16 | at[4 * i + 2] << 8 | at[4 * i + 3]
                          : turn(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
            uint32_t f = i < 20   ? ((b & c) | (~b & d)) + 0x5A827999
                         : i < 40 ? (b ^ c ^ d) + 0x6ED9EBA1
                         : i < 60 ? ((b & c) | (b & d) | (c & d)) + 0x8F1BBCDC
                                  : (b ^ c ^ d) + 0xCA62C1D6;
            uint32_t next = turn(a, 5) + f + e + w[i];
            e = d, d = c, c = turn(b, 30), b = a, a = next;
        }
        h[0] += a, h[1] += b, h[2] += c, h[3] += d, h[4] += e;
    }
    for (int i = 0; i < 20; i++) digest[i] = h[i / 4] >> (24 - 8 * (i % 4));
}

static void base64(const uint8_t *data, int length, char *text) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (int i = 0; i < length; i += 3) {
        uint32_t group = data[i] << 16 | (i + 1 < length ? data[i + 1] << 8 : 0) | (i + 2 < length ? data[i + 2] : 0);
        for (int k = 0; k < 4; k++) *text++ = i + k > length ? '=' : digits[group >> (18 - 6 * k) & 63];
    }
    *text = 0;
}

static void accept_one(int listener) {
    static const char guid[] = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    char request[4096], key[80], accepted[32], response[256];
    uint8_t digest[20];
    int one = 1, fd = accept(listener, NULL, NULL);
    size_t length = 0;
    if (fd < 0 || count == MOST_SOCKETS) die("accept");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    do {
        ssize_t got = read(fd, request + length, sizeof request - 1 - length);
        if (got <= 0) {
            close(fd);
            return;
        }
        request[length += got] = 0;
    } while (!strstr(request, "\r\n\r\n"));
    char *header = strcasestr(request, "\r\nSec-WebSocket-Key: ");
    if (!header || sscanf(header + 21, "%40[^\r]", key) != 1) {
        close(fd);
        return;
    }
    strcat(key, guid);
    sha1(key, strlen(key), digest);
    base64(digest, 20, accepted);
    int size = snprintf(response, sizeof response,
                        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                        "Sec-WebSocket-Accept: %s\r\n\r\n", accepted);
    if (write(fd, response, size) != size) die("write");
    sockets[count++] = fd;
}

static int to_redis(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    static const char subscribe[] = "SUBSCRIBE events:broadcast\r\n";
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(fd, (struct sockaddr *)&address, sizeof address)) die("connect");
    if (write(fd, subscribe, sizeof subscribe - 1) < 0) die("write");
    return fd;
}

static int listening(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 4096)) die("listen");
    return fd;
}

/* One frame to everybody. */
static void fan_out(const char *body, size_t length) {
    static char frame[LONGEST + 4];
    size_t head = length < 126 ? 2 : 4;
    frame[0] = (char)0x81;
    frame[1] = length < 126 ? length : 126;
    if (head == 4) frame[2] = length >> 8, frame[3] = length & 255;
    memcpy(frame + head, body, length);
    for (int i = 0; i < count; i++)
        if (send(sockets[i], frame, head + length, MSG_NOSIGNAL) < 0) sockets[i--] = sockets[--count];
}

/* Take the whole replies off the front of what Redis sent; give how many bytes they were. */
static size_t replies(char *buffer, size_t length) {
    static const char mark[] = "$7\r\nmessage\r\n$16\r\nevents:broadcast\r\n$";
    char *at = buffer, *found;
    while ((found = memmem(at, buffer + length - at, mark, sizeof mark - 1))) {
        char *number = found + sizeof mark - 1, *line = memchr(number, '\n', buffer + length - number);
        if (!line) break;
        size_t size = strtoul(number, NULL, 10);
        if (line + 1 + size + 2 > buffer + length) break;
        char *members = memmem(line, size, "],", 2); /* {"recipients":[],<members>} */
        if (!members) die("no recipients");
        members[1] = '{';
        fan_out(members + 1, line + 1 + size - (members + 1));
        at = line + 1 + size + 2;
    }
    return at - buffer;
}

int main(int argc, char **argv) {
    static char buffer[4 * LONGEST];
    size_t length = 0;
    if (argc != 3) return 2;
    int redis = to_redis(atoi(argv[2])), listener = listening(atoi(argv[1])), poll = epoll_create1(0);
    struct epoll_event interest = {.events = EPOLLIN}, event;
    interest.data.fd = redis;
    epoll_ctl(poll, EPOLL_CTL_ADD, redis, &interest);
    interest.data.fd = listener;
    epoll_ctl(poll, EPOLL_CTL_ADD, listener, &interest);
    while (epoll_wait(poll, &event, 1, -1) == 1) {
        if (event.data.fd == listener) {
            accept_one(listener);
            continue;
        }
        ssize_t got = read(redis, buffer + length, sizeof buffer - length);
        if (got <= 0) return 0;
        length += got;
        size_t taken = replies(buffer, length);
        memmove(buffer, buffer + taken, length -= taken);
    }
    return 0;
}
