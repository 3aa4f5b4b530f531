// Run a workload file in SimGrid and print the result as JSON.
//
// The format of the file, and what the instructions mean, is described in tests/benchmarks/workloads.py; the
// keys of the result are those of tests/benchmarks/on_clock.py. Written for SimGrid 3.32.
//
// The network model is CM02 without the bound of TCP's window (TCP-gamma) and without acknowledgement traffic:
// a flow pays the latency of its route, then shares links in a max-min fair way, weighted by 1/latency. Every
// route of a file is an explicit route of one full zone, so latencies and sharing are those of the file.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <deque>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <simgrid/s4u.hpp>
#include <simgrid/version.h>

namespace sg4 = simgrid::s4u;

namespace {

enum class Kind { sleep, send, put, get, wait, repeat, end };

struct Instruction {
  Kind kind;
  double seconds;       // sleep
  std::size_t route;    // send, put, get
  std::uint64_t number; // bytes of send and put, times of repeat
};

struct Route {
  sg4::Host* source;
  sg4::Host* destination;
  sg4::Mailbox* mailbox;
};

struct Process {
  std::size_t host;
  std::vector<Instruction> program;
  double finish = -1.0;
};

struct Workload {
  std::string name;
  std::vector<sg4::Host*> hosts;
  std::vector<Route> routes;
  std::vector<Process> processes;
  std::uint64_t flows = 0;
};

std::size_t heading(std::istream& file, const std::string& key) {
  std::string found;
  std::size_t count = 0;
  if (!(file >> found >> count) || found != key)
    throw std::runtime_error("a workload file has a line '" + key + " COUNT' here");
  return count;
}

Instruction instruction(std::istream& file) {
  std::string word;
  file >> word;
  Instruction read{Kind::wait, 0.0, 0, 0};
  if (word == "sleep") {
    read.kind = Kind::sleep;
    file >> read.seconds;
  } else if (word == "send") {
    read.kind = Kind::send;
    file >> read.route >> read.number;
  } else if (word == "put") {
    read.kind = Kind::put;
    file >> read.route >> read.number;
  } else if (word == "get") {
    read.kind = Kind::get;
    file >> read.route;
  } else if (word == "repeat") {
    read.kind = Kind::repeat;
    file >> read.number;
  } else if (word == "end") {
    read.kind = Kind::end;
  } else if (word != "wait") {
    throw std::runtime_error("there is no instruction '" + word + "'");
  }
  return read;
}

// Read the file, and build the platform on the way.
Workload build(std::istream& file) {
  Workload workload;
  std::string key;
  file >> key >> workload.name;
  if (key != "workload")
    throw std::runtime_error("this is no workload file");
  auto* zone = sg4::create_full_zone("network");
  const std::size_t hosts = heading(file, "hosts");
  for (std::size_t host = 0; host < hosts; host++)
    workload.hosts.push_back(zone->create_host(std::to_string(host), 1e9));
  const std::size_t count = heading(file, "links");
  std::vector<const sg4::Link*> links;
  for (std::size_t link = 0; link < count; link++) {
    double capacity = 0.0, latency = 0.0;
    file >> capacity >> latency;
    links.push_back(zone->create_link(std::to_string(link), capacity)
                        ->set_sharing_policy(sg4::Link::SharingPolicy::SHARED)
                        ->set_latency(latency)
                        ->seal());
  }
  const std::size_t routes = heading(file, "routes");
  for (std::size_t route = 0; route < routes; route++) {
    std::size_t source = 0, destination = 0, length = 0;
    file >> source >> destination >> length;
    std::vector<sg4::LinkInRoute> over;
    for (std::size_t hop = 0; hop < length; hop++) {
      std::size_t link = 0;
      file >> link;
      over.emplace_back(links.at(link));
    }
    sg4::Host* from = workload.hosts.at(source);
    sg4::Host* to   = workload.hosts.at(destination);
    zone->add_route(from->get_netpoint(), to->get_netpoint(), nullptr, nullptr, over, false);
    workload.routes.push_back({from, to, sg4::Mailbox::by_name(std::to_string(route))});
  }
  zone->seal();
  workload.processes.resize(heading(file, "processes"));
  for (auto& process : workload.processes) {
    std::size_t length = 0;
    file >> process.host >> length;
    process.program.reserve(length);
    for (std::size_t position = 0; position < length; position++)
      process.program.push_back(instruction(file));
  }
  if (!file)
    throw std::runtime_error("the workload file ends too early, or has a word where a number is expected");
  return workload;
}

// The body of an actor: run the program of a process.
void run(Workload& workload, Process& process) {
  static char message; // what is delivered; only its simulated size matters
  char* delivered = nullptr;
  std::vector<sg4::CommPtr> mine;
  std::vector<std::pair<std::size_t, std::uint64_t>> loops; // where the body begins, how often it is to come
  const auto& program = process.program;
  for (std::size_t position = 0; position < program.size(); position++) {
    const Instruction& now = program[position];
    switch (now.kind) {
      case Kind::sleep:
        sg4::this_actor::sleep_for(now.seconds);
        break;
      case Kind::send:
        workload.flows++;
        sg4::Comm::sendto(workload.routes[now.route].source, workload.routes[now.route].destination, now.number);
        break;
      case Kind::put:
        workload.flows++;
        mine.push_back(workload.routes[now.route].mailbox->put_async(&message, now.number));
        break;
      case Kind::get:
        mine.push_back(workload.routes[now.route].mailbox->get_async<char>(&delivered));
        break;
      case Kind::wait:
        for (auto& posted : mine)
          posted->wait();
        mine.clear();
        break;
      case Kind::repeat:
        loops.emplace_back(position, now.number - 1);
        break;
      case Kind::end:
        if (loops.back().second > 0) {
          loops.back().second--;
          position = loops.back().first;
        } else {
          loops.pop_back();
        }
        break;
    }
  }
  process.finish = sg4::Engine::get_clock();
}

double cpu_seconds() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// Not the ru_maxrss of getrusage: Linux carries that over from the program that started this one.
long long peak_memory() {
  std::ifstream status("/proc/self/status");
  std::string word;
  long long kibibytes = 0;
  while (status >> word && word != "VmHWM:") {
  }
  status >> kibibytes;
  return kibibytes * 1024;
}

void print(const Workload& workload, double seconds) {
  int major = 0, minor = 0, patch = 0;
  sg_version_get(&major, &minor, &patch);
  double makespan = 0.0;
  for (const auto& process : workload.processes)
    makespan = std::max(makespan, process.finish);
  std::printf("{\"simulator\": \"SimGrid %d.%d\", \"makespan\": %.17g, \"finish\": [", major, minor, makespan);
  const char* separator = "";
  for (const auto& process : workload.processes) {
    std::printf("%s%.17g", separator, process.finish);
    separator = ", ";
  }
  std::printf("], \"flows\": %llu, \"cpu_seconds\": %.6f, \"peak_memory\": %lld}\n",
              static_cast<unsigned long long>(workload.flows), seconds,
              peak_memory());
}

} // namespace

int main(int argc, char* argv[]) {
  sg4::Engine engine(&argc, argv);
  sg4::Engine::set_config("network/model:CM02");
  sg4::Engine::set_config("network/TCP-gamma:0");
  sg4::Engine::set_config("network/crosstraffic:0");
  sg4::Engine::set_config("maxmin/concurrency-limit:-1");
  sg4::Engine::set_config("contexts/stack-size:64"); // KiB: enough here, and thousands of actors fit
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s FILE\n", argv[0]);
    return 2;
  }
  Workload workload;
  try {
    std::ifstream file(argv[1]);
    if (!file)
      throw std::runtime_error("cannot be read");
    workload = build(file);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: %s\n", argv[1], error.what());
    return 2;
  }
  for (auto& process : workload.processes)
    sg4::Actor::create("process", workload.hosts.at(process.host), [&workload, &process] { run(workload, process); });
  const double begin = cpu_seconds();
  engine.run();
  print(workload, cpu_seconds() - begin);
  return 0;
}
