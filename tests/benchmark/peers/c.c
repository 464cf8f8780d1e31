#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv) {
    struct sockaddr_in host = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])),
                               .sin_addr.s_addr = htonl(INADDR_LOOPBACK)}, peer;
    int client, on = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
    socklen_t size = sizeof host;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (void *)&host, size) || listen(listener, SOMAXCONN))
        return perror("listen"), 1;
    setvbuf(stdout, NULL, _IOLBF, BUFSIZ);
    while ((client = accept4(listener, (void *)&peer, &size, SOCK_CLOEXEC)) >= 0) {
        char stamp[32], from[INET_ADDRSTRLEN], to[INET_ADDRSTRLEN];
        time_t now = time(NULL);
        getsockname(client, (void *)&host, &size);
        strftime(stamp, sizeof stamp, "%FT%TZ", gmtime(&now));
        inet_ntop(AF_INET, &peer.sin_addr, from, sizeof from);
        inet_ntop(AF_INET, &host.sin_addr, to, sizeof to);
        printf("%s Connection established! %s:%d -> %s:%d\n", stamp,
               from, ntohs(peer.sin_port), to, ntohs(host.sin_port));
        close(client);
    }
    return perror("accept4"), 1;
}
