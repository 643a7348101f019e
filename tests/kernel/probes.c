/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A stand-in for a PHP that a compiler laid out otherwise than Debian's: the
 * same probes by sys/sdt.h, with arguments on the stack and with no semaphore.
 * Connects to 127.0.0.1:25 within a request of the script, URI and method that
 * it is given.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/sdt.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv) {
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(25)};
  const char *script = argv[1], *uri = argv[2], *method = argv[3];
  int client = socket(AF_INET, SOCK_STREAM, 0);

  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  DTRACE_PROBE3(php, request__startup, script, uri, method);
  if (connect(client, (struct sockaddr *)&to, sizeof(to)))
    return 1;
  DTRACE_PROBE3(php, request__shutdown, script, uri, method);
  return argc != 4;
}
