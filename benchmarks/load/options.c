#define _GNU_SOURCE
#include "load.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>

static const char USAGE[] =
    "load --port P (--seconds S | --requests N) --request FILE [--weight N] [--status CODE] [--equals FILE]\n"
    "     [--contains FILE] [--request FILE ...] [--host 127.0.0.1] [--connections C] [--rate R [--poisson] [--seed N]]\n"
    "     [--timeout-ms T] [--patience-ms T]\n"
    "FILE is a whole HTTP request; --weight, --status, --equals and --contains belong to the request before them.\n"
    "Without --rate each connection asks again as soon as it is answered. With it requests are due at that rate; one that\n"
    "finds no free connection waits up to --patience-ms and is then counted as unsent. SIGTERM ends the run early.\n";

static void refuse(const char *why)
{
    fprintf(stderr, "load: %s\n%s", why, USAGE);
    exit(2);
}

static char *read_file(const char *path, size_t *size)
{
    FILE *file = fopen(path, "rb");
    char *data = NULL;
    long length = -1;
    if (file && !fseek(file, 0, SEEK_END) && (length = ftell(file)) >= 0) {
        rewind(file);
        data = malloc((size_t)length + 1);
    }
    if (!data || fread(data, 1, (size_t)length, file) != (size_t)length) {
        perror(path);
        exit(2);
    }
    fclose(file);
    *size = (size_t)length;
    return data;
}

static struct template *add_template(struct options *options, const char *path)
{
    if (options->template_count == MAX_TEMPLATES)
        refuse("too many requests");
    struct template *template = &options->templates[options->template_count++];
    template->path = path;
    template->request = read_file(path, &template->request_size);
    template->weight = 1;
    template->status = 200;
    return template;
}

static double number(const char *text)
{
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || !(value >= 0) || value > 1e12)
        refuse("an option is not a number");
    return value;
}

enum { HOST, PORT, CONNECTIONS, SECONDS, REQUESTS, RATE, POISSON, SEED, TIMEOUT, PATIENCE, REQUEST, WEIGHT, STATUS,
       EQUALS, CONTAINS };

static const struct option WORDS[] = {
    {"host", 1, NULL, HOST},
    {"port", 1, NULL, PORT},
    {"connections", 1, NULL, CONNECTIONS},
    {"seconds", 1, NULL, SECONDS},
    {"requests", 1, NULL, REQUESTS},
    {"rate", 1, NULL, RATE},
    {"poisson", 0, NULL, POISSON},
    {"seed", 1, NULL, SEED},
    {"timeout-ms", 1, NULL, TIMEOUT},
    {"patience-ms", 1, NULL, PATIENCE},
    {"request", 1, NULL, REQUEST},
    {"weight", 1, NULL, WEIGHT},
    {"status", 1, NULL, STATUS},
    {"equals", 1, NULL, EQUALS},
    {"contains", 1, NULL, CONTAINS},
    {NULL, 0, NULL, 0},
};

static void set_run(struct options *options, int word, const char *value)
{
    switch (word) {
    case HOST: options->host = value; break;
    case PORT: options->port = (int)number(value); break;
    case CONNECTIONS: options->connections = (int)number(value); break;
    case SECONDS: options->seconds = number(value); break;
    case REQUESTS: options->requests = (uint64_t)number(value); break;
    case RATE: options->rate = number(value); break;
    case POISSON: options->is_poisson = 1; break;
    case SEED: options->seed = (uint64_t)number(value); break;
    case TIMEOUT: options->timeout = (int64_t)(number(value) * (double)MILLISECOND); break;
    case PATIENCE: options->patience = (int64_t)(number(value) * (double)MILLISECOND); break;
    default: refuse("unknown option");
    }
}

static void set_template(struct template *template, int word, char *value)
{
    switch (word) {
    case WEIGHT: template->weight = (int)number(value); break;
    case STATUS: template->status = (int)number(value); break;
    case EQUALS: template->equals = read_file(value, &template->equals_size); break;
    case CONTAINS: template->contains = read_file(value, &template->contains_size); break;
    default: break;
    }
}

static void check(const struct options *options)
{
    int weights = 0;
    for (int index = 0; index < options->template_count; index++)
        weights += options->templates[index].weight;
    if (weights <= 0)
        refuse("no --request, or none with a weight");
    if (options->port < 1 || options->port > 65535)
        refuse("--port is missing or not a port");
    if (options->connections < 1 || options->connections > 10000)
        refuse("--connections is not 1 to 10000");
    if ((options->seconds > 0) == (options->requests > 0))
        refuse("one of --seconds and --requests is needed");
    if (options->rate * (options->seconds > 0 ? options->seconds : 1) > 1e8 || options->requests > 100000000)
        refuse("more than 100 million requests");
}

void parse_options(struct options *options, int count, char **words)
{
    *options = (struct options){
        .host = "127.0.0.1", .connections = 1, .seed = 1, .timeout = 10 * SECOND, .patience = -1};
    struct template *template = NULL;
    for (int word; (word = getopt_long(count, words, "", WORDS, NULL)) != -1;) {
        if (word == REQUEST)
            template = add_template(options, optarg);
        else if (word >= WEIGHT && word <= CONTAINS && template)
            set_template(template, word, optarg);
        else
            set_run(options, word, optarg);
    }
    if (optind < count)
        refuse("unexpected word");
    if (options->patience < 0)
        options->patience = options->timeout;
    check(options);
}

struct template *next_template(struct options *options)
{
    struct template *best = &options->templates[0];
    int total = 0;
    for (int index = 0; index < options->template_count; index++) {
        struct template *template = &options->templates[index];
        total += template->weight;
        template->credit += template->weight;
        if (template->credit > best->credit)
            best = template;
    }
    best->credit -= total;
    return best;
}
